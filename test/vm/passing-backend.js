import { z } from 'zod';

/** Hands everything on to the backend below it; `literal`: having opened another one whose path no option is. */
export default {
  name: 'passing',
  options: z.strictObject({ below: z.looseObject({ type: z.string() }), literal: z.string().optional() }),
  async open({ below, literal }, context) {
    if (literal !== undefined) await context.open({ type: 'file', path: `/${literal}` });
    return await context.open(below);
  },
};
