import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';

/** What we use of WebAssembly; no library of ours declares it. */
interface WebAssemblyMemory {
  readonly Memory: new (descriptor: { initial: number }) => { readonly buffer: ArrayBuffer };
}

const SLOT_BYTES = 2 ** 20;
const SLOTS_A_MEMORY = 4;
const WASM_PAGE_BYTES = 2 ** 16;

const free: Uint8Array[] = [];

/** 1 MiB, aligned as O_DIRECT needs it. A Buffer is not aligned to anything; a WebAssembly memory begins a page. */
export function takeSlot(): Uint8Array {
  if (free.length === 0) {
    const { Memory } = (globalThis as unknown as { WebAssembly: WebAssemblyMemory }).WebAssembly;
    const { buffer } = new Memory({ initial: (SLOTS_A_MEMORY * SLOT_BYTES) / WASM_PAGE_BYTES });
    for (let slot = 0; slot < SLOTS_A_MEMORY; slot++) free.push(new Uint8Array(buffer, slot * SLOT_BYTES, SLOT_BYTES));
  }
  const slot = free.pop();
  if (!slot) throw new TypeError('no memory');
  return slot;
}

/** A block device opened with O_DIRECT: every call is one system call of at most 1 MiB, and nothing is cached. */
export class DirectFile {
  readonly #handle: FileHandle;

  private constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  /** @param flags added to O_RDWR and O_DIRECT, such as O_DSYNC */
  static async open(path: string, flags = 0): Promise<DirectFile> {
    return new DirectFile(await open(path, constants.O_RDWR | constants.O_DIRECT | flags));
  }

  /** Opens a device that cannot be written to. */
  static async openReadOnly(path: string): Promise<DirectFile> {
    return new DirectFile(await open(path, constants.O_RDONLY | constants.O_DIRECT));
  }

  /** As short as the kernel made it. */
  async read(offset: number, length: number): Promise<Buffer> {
    const slot = takeSlot();
    try {
      // What the kernel leaves out must not look like an earlier read.
      slot.fill(0xee, 0, length);
      const { bytesRead } = await this.#handle.read(slot, 0, length, offset);
      return Buffer.from(slot.subarray(0, bytesRead));
    } finally {
      free.push(slot);
    }
  }

  /** Resolves with how much the kernel took. */
  async write(offset: number, data: Uint8Array): Promise<number> {
    const slot = takeSlot();
    try {
      slot.set(data);
      return (await this.#handle.write(slot, 0, data.length, offset)).bytesWritten;
    } finally {
      free.push(slot);
    }
  }

  flush(): Promise<void> {
    return this.#handle.datasync();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close();
  }
}
