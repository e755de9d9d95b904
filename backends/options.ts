import * as z from 'zod';
import { printable } from '../src/printable.js';
import { LARGEST_DEVICE, parseSize } from '../src/units.js';

/** A path, relative to the configuration, that can be put into a message. */
export const filePath = z
  .string()
  .refine((path) => path !== '' && printable(path) === path, {
    error: ({ input }) => `expected a path without control characters, got ${JSON.stringify(input)}`,
  })
  .refine((path) => !/^(~|[a-z][a-z0-9+.-]*:\/\/)/i.test(path), {
    error: ({ input }) =>
      `expected a path, from / or from here (a shell would make one of ~), got ${JSON.stringify(input)}`,
  });

/** A device size: a number of bytes or a string with a unit, a multiple of 512. */
export const deviceSize = z.union([z.number(), z.string()]).transform((value, context) => {
  const size = parseSize(value);
  if (size === undefined) {
    context.addIssue({
      code: 'custom',
      message: `expected a size such as 512MiB, 10G or 1048576, got ${JSON.stringify(value)}`,
    });
    return z.NEVER;
  }
  if (size < 4096 || size > LARGEST_DEVICE || size % 512 !== 0) {
    context.addIssue({
      code: 'custom',
      message: `expected a multiple of 512 from 4096 to ${LARGEST_DEVICE} bytes, got ${size}`,
    });
    return z.NEVER;
  }
  return size;
});
