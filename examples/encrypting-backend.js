import { createCipheriv, createDecipheriv } from 'node:crypto';
import { open } from 'node:fs/promises';
import { defineBackend } from 'ublk-supervisor';
import { z } from 'zod';

const KEY_BYTES = 64;
/** What is encrypted as a unit, whatever the device's block size is. */
const SECTOR = 512;

/** Keeps the data of another backend encrypted: AES-256-XTS, as dm-crypt does with `aes-xts-plain64`. */
export default defineBackend({
  name: 'encrypting-backend',
  options: z.strictObject({
    keyFile: z.string().describe('path of 64 random bytes that only their owner may read'),
    backend: z.looseObject({ type: z.string() }).describe('the other backend, as a device has one'),
  }),
  async open({ keyFile, backend }, context) {
    const key = await readKey(context.resolve(keyFile));
    const inner = await context.open(backend);
    const write = inner.write?.bind(inner);
    const flush = inner.flush?.bind(inner);
    const discard = inner.discard?.bind(inner);
    const close = inner.close?.bind(inner);

    /** @param {typeof createCipheriv | typeof createDecipheriv} create */
    const transform = (create, /** @type {Buffer} */ from, /** @type {Buffer} */ to, /** @type {number} */ offset) => {
      const tweak = Buffer.alloc(16);
      for (let start = 0; start < from.length; start += SECTOR) {
        tweak.writeBigUInt64LE(BigInt((offset + start) / SECTOR));
        create('aes-256-xts', key, tweak)
          .update(from.subarray(start, start + SECTOR))
          .copy(to, start);
      }
    };

    return {
      size: inner.size,
      ...(inner.blockSize && { blockSize: inner.blockSize }),
      readOnly: inner.readOnly === true,
      async read(buffer, offset) {
        const length = await inner.read(buffer, offset);
        transform(createDecipheriv, buffer, buffer, offset);
        return length;
      },
      ...(write && {
        // Not in place: who wraps this backend may give the same buffer to another one.
        write(buffer, offset, how) {
          const encrypted = Buffer.allocUnsafe(buffer.length);
          transform(createCipheriv, buffer, encrypted, offset);
          return write(encrypted, offset, how);
        },
      }),
      // What was discarded reads as noise, which it may. Zeros there would be none here: writeZeroes is left out.
      ...(flush && { flush }),
      ...(discard && { discard }),
      ...(close && { close }),
    };
  },
});

/** @param {string} path */
async function readKey(path) {
  const file = await open(path);
  try {
    const { mode } = await file.stat();
    if ((mode & 0o077) !== 0) throw new Error(`others may use key file ${path}; chmod 600 it`);
    const key = await file.readFile();
    if (key.length !== KEY_BYTES) throw new Error(`key file ${path} has ${key.length} bytes; expected ${KEY_BYTES}`);
    return key;
  } finally {
    await file.close();
  }
}
