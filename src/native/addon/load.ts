import { createRequire } from 'node:module';
import { SupervisorError, errnoName, errnoOf, messageOf } from '../../errors.js';
import { packageRoot } from '../../package-root.js';

let addon: unknown;

/**
 * The compiled addon. Each file here types its own part, which the C++ file of the same name exports. It is loaded at first
 * use: `check`, `schema` and `--help` work where the addon was never built.
 */
export function loadAddon(): unknown {
  addon ??= load();
  return addon;
}

function load(): unknown {
  const path = `${packageRoot}build/Release/ublk.node`;
  try {
    return createRequire(import.meta.url)(path);
  } catch (error) {
    const [reason] = messageOf(error).split('\n', 1);
    throw new SupervisorError(
      `loading ${path} failed: ${String(reason)}; build it for this machine, with g++ and liburing-dev installed: ` +
        `npx node-gyp rebuild -C ${packageRoot}`,
      { code: 'ADDON', cause: error },
    );
  }
}

/** Gives the addon's errors the project's class and their errno's name. */
export function translated<Result>(call: () => Result): Result {
  try {
    return call();
  } catch (error) {
    return rethrowTranslated(error);
  }
}

export function rethrowTranslated(error: unknown): never {
  const errno = errnoOf(error);
  if (errno === undefined) throw error;
  const code = errnoName(errno);
  throw new SupervisorError(`${messageOf(error)} (${code})`, { code, errno, cause: error });
}
