import { constants } from 'node:os';
import { lookAtBackend } from '../../backends/registry.js';
import { errnoOf, messageOf } from '../errors.js';
import type { LookAnswer, LookRequest } from './messages.js';

/** The process in which `check` looks at stores: a file system may keep it waiting for ever, and `check` then goes on without it. */

process.title = 'ublk-look';

process.once('message', (message) => {
  say({ index: null });
  for (const [index, request] of (message as readonly LookRequest[]).entries()) void look(index, request);
});

async function look(index: number, { options, context }: LookRequest): Promise<void> {
  try {
    say({ index, error: null, identity: await lookAtBackend(options, context) });
  } catch (error) {
    // The supervisor, which is root, may see it.
    const unseen = errnoOf(error) === constants.errno.EACCES && process.geteuid?.() !== 0;
    say({ index, error: unseen ? null : messageOf(error), identity: null });
  }
}

function say(answer: LookAnswer): void {
  process.send?.(answer);
}
