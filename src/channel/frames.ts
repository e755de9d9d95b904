import type { Duplex } from 'node:stream';
import { Packr } from 'msgpackr';

/**
 * Messages over a stream: magic, version and length, then msgpack. Only off the I/O path. What is no frame of this
 * version, or too long, ends the stream with an error.
 */
const MAGIC = 0x7562;
const VERSION = 1;
const HEADER_BYTES = 8;
const LARGEST_MESSAGE = 2 ** 20;
const FRAME_START = Buffer.alloc(4);
FRAME_START.writeUInt16LE(MAGIC, 0);
FRAME_START.writeUInt16LE(VERSION, 2);

const packr = new Packr({ useRecords: false, copyBuffers: true });

export function sendFrame(stream: Duplex, message: object): void {
  const body = packr.pack(message);
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt16LE(MAGIC, 0);
  header.writeUInt16LE(VERSION, 2);
  header.writeUInt32LE(body.length, 4);
  stream.write(Buffer.concat([header, body]));
}

/**
 * Calls back for each message that comes in; a malformed one destroys the stream. `midway`: another process has read from the
 * stream before, so it may begin within a message, of which the rest is passed over.
 */
export function onFrames(stream: Duplex, onMessage: (message: unknown) => void, { midway = false } = {}): void {
  let pending: Buffer = Buffer.alloc(0);
  let found = !midway;
  stream.on('data', (chunk: Buffer) => {
    pending = Buffer.concat([pending, chunk]);
    if (!found) {
      const start = pending.indexOf(FRAME_START);
      found = start >= 0;
      pending = found ? pending.subarray(start) : pending.subarray(1 - FRAME_START.length);
    }
    if (!found) return;
    while (pending.length >= HEADER_BYTES) {
      const length = pending.readUInt32LE(4);
      if (pending.readUInt16LE(0) !== MAGIC || pending.readUInt16LE(2) !== VERSION || length > LARGEST_MESSAGE) {
        stream.destroy(new Error('not a frame of this version'));
        return;
      }
      if (pending.length < HEADER_BYTES + length) return;
      const body = pending.subarray(HEADER_BYTES, HEADER_BYTES + length);
      pending = pending.subarray(HEADER_BYTES + length);
      try {
        onMessage(packr.unpack(body));
      } catch (error) {
        stream.destroy(error instanceof Error ? error : new Error(String(error)));
        return;
      }
    }
  });
}
