import { createHash } from 'node:crypto';
import { resolve } from 'node:path';

/**
 * How the supervisor of one runtime directory knows its devices in the kernel: the driver keeps 64 bits for each device
 * (`ublksrv_flags`), of which the upper half is a digest of the directory and the lower half one of the device's name.
 * Neither is ever 0, which is what other servers leave there.
 */
export class Cookies {
  readonly #half: bigint;

  constructor(runtimeDir: string) {
    this.#half = digest(`ublk-supervisor\0${resolve(runtimeDir)}`);
  }

  cookieOf(name: string): bigint {
    return (this.#half << 32n) | digest(`device\0${name}`);
  }

  owns(cookie: bigint): boolean {
    return cookie >> 32n === this.#half;
  }
}

function digest(text: string): bigint {
  return BigInt(createHash('sha256').update(text).digest().readUInt32LE(0) | 1) & 0xffffffffn;
}
