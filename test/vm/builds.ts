import { copyFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { root } from './harness.js';

/** This build's native code, and another's, whose protocol between supervisor and zygotes has another version. */
export type Build = 'this' | 'other';

const RELEASE = 'build/Release';
/** Put there by scripts/other-build. */
const OTHER_RELEASE = 'build/other-build/build/Release';
const NATIVE_CODE = ['zygote.so', 'ublk.node'] as const;

/** Keeps a copy of this build's native code, which `install` brings back. In the guest only, whose root is an overlay. */
export async function keepThisBuild(): Promise<void> {
  for (const name of NATIVE_CODE) await copyFile(join(root, RELEASE, name), join(root, RELEASE, `${name}.this`));
}

/** Puts each file into its place in one step, as an installation does. */
export async function install(build: Build, names: readonly string[] = NATIVE_CODE): Promise<void> {
  for (const name of names) {
    const place = join(root, RELEASE, name);
    await copyFile(build === 'this' ? `${place}.this` : join(root, OTHER_RELEASE, name), `${place}.new`);
    await rename(`${place}.new`, place);
  }
}
