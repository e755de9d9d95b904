import { close, constants, fstat, fsync, ftruncate, type BigIntStats } from 'node:fs';
import { open, stat, unlink, type FileHandle } from 'node:fs/promises';
import { promisify } from 'node:util';
import { HOW_TO_SERVE, blockSizeOf, blockSizeOfNew, containerOf, readerOf } from '../disk-image.js';
import type { ChosenBlockSize } from '../disk-image.js';
import type { Choice, LeftBackend } from '../interface.js';
import {
  directIoAlignment,
  fallocate,
  flock,
  KEEP_SIZE,
  PUNCH_HOLE,
  takesDirectIo,
  type DirectIoAlignment,
} from '../../src/native/addon/files.js';
import { describeBlockDevice } from './block-device.js';
import { locate, pathOf } from './locate.js';
import { assertHoldsABlock, assertMayBeMade, assertOfSize, blockDeviceOf, named, refusal } from './refusal.js';
import { otherUserOf } from './users.js';

const closed = promisify(close);
const statOf = promisify(fstat);
const truncateTo = promisify(ftruncate);
const synced = promisify(fsync);

const PUT_BACK = 'put that back, or remove the device and add it anew';
const PAGE = 4096;
const SECTOR = 512;
/** What the kernel asks of the memory of its own users, and so all that zero-copy can promise a file system. */
const CLIENT_MEMORY_ALIGNMENT = 512;

export interface StoreOptions {
  readonly path: string;
  /** Bytes; undefined: those that it has. */
  readonly size?: number | undefined;
  readonly direct: boolean | 'auto';
  readonly readOnly: boolean;
  readonly preallocate: boolean;
  readonly sync: boolean;
}

/** An open file or block device, locked against other supervisors. */
export interface Store {
  readonly fd: number;
  /** As `OpenBackend.identity`. */
  readonly identity: string;
  /** Bytes, of whole blocks. */
  readonly size: number;
  /** Bytes. */
  readonly blockSize: number;
  readonly choices: readonly Choice[];
  /** Asked for, or because the block device is. */
  readonly readOnly: boolean;
  /** null: there is nothing that its user should be told. */
  readonly warning: string | null;
  readonly canDiscard: boolean;
  readonly rotational: boolean;
  /** Its file system does I/O with whatever memory a client has. */
  readonly takesClientMemory: boolean;
  /** Rejects when the path names something else by now, or what it names shrank. */
  check(): Promise<void>;
  /** The same store at another size. A file is made larger; a block device has to have that size by now. */
  resize(size: number): Promise<Store>;
  /** Cuts off what a file has behind `size`. */
  trim(): Promise<void>;
  close(): Promise<void>;
}

/**
 * Opens or creates what `options.path` names, locked against a second user. What fails leaves nothing behind. What is
 * inherited open is taken over with its lock. A store whose device has users is never made, filled or another than it was.
 * `blockSize`: null: the one that suits what is in it.
 */
export async function openStore(
  options: StoreOptions,
  blockSize: number | null,
  inherited?: LeftBackend,
): Promise<Store> {
  const { path } = options;
  const promised = inherited?.size ?? null;
  return named('opening', path, async () => {
    const [fd] = inherited?.files ?? [];
    if (fd !== undefined) return await openInherited(fd, options, blockSize, promised);
    await using place = await locate(path);
    if (promised !== null) await assertIs(path, place.found, inherited?.announced?.identity);
    if (place.found !== null) return await openFound(place.found, options, blockSize, promised);
    assertMayBeMade(path, options);
    const { O_RDWR, O_CREAT, O_EXCL } = constants;
    await using created = await open(place.path, O_RDWR | O_CREAT | O_EXCL, 0o600);
    try {
      const store = await openFound(created, options, blockSize, promised);
      await using directory = await open(pathOf(place.directory), constants.O_RDONLY);
      await directory.sync();
      return store;
    } catch (error) {
      await unlink(place.path);
      throw error;
    }
  });
}

async function openFound(
  found: FileHandle,
  asked: StoreOptions,
  wantedBlockSize: number | null,
  promised: number | null,
): Promise<Store> {
  const { path, sync } = asked;
  const status = await found.stat();
  const device = await blockDeviceOf(path, status);
  const readOnly = asked.readOnly || device?.readOnly === true;
  const options = { ...asked, readOnly };
  const { blockSize, choices } = await chosenBlockSize(pathOf(found), options, wantedBlockSize);
  const alignment = (await directIoAlignment(found.fd)) ?? (await triedAlignment(found.fd, options));
  const direct = useDirectIo(options, alignment, blockSize);
  const flags =
    (readOnly ? constants.O_RDONLY : constants.O_RDWR) |
    (direct ? constants.O_DIRECT : 0) |
    (sync ? constants.O_DSYNC : 0) |
    // Of a block device: claims it, which fails when it or a partition of it is mounted or otherwise claimed.
    (device ? constants.O_EXCL : 0);
  const file = await open(pathOf(found), flags);
  try {
    if (!(await flock(file.fd)))
      throw refusal(path, 'another process or device has it locked; close that', 'opening', 'IN_USE');
    if (status.isFile() && !readOnly && promised === null) {
      const otherUser = await otherUserOf(path, status);
      if (otherUser !== null) throw refusal(path, otherUser, 'opening', 'IN_USE');
      if (status.size === 0) await fill(file, options);
    }
    const takesClientMemory = !direct || (alignment?.memory ?? 0) <= CLIENT_MEMORY_ALIGNMENT;
    return await describe(file.fd, options, promised, {
      blockSize,
      choices: [...choices, ...directIoChoice(options, alignment, direct), ...readOnlyChoice(asked, readOnly)],
      takesClientMemory,
      close: () => file.close(),
    });
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** The device on it exists, so what it does with clients' memory was decided when that was made. */
async function openInherited(
  fd: number,
  options: StoreOptions,
  wantedBlockSize: number | null,
  promised: number | null,
): Promise<Store> {
  try {
    const chosen = await chosenBlockSize(pathOf({ fd }), options, wantedBlockSize);
    const close = (): Promise<void> => closed(fd);
    return await describe(fd, options, promised, { ...chosen, takesClientMemory: true, close });
  } catch (error) {
    await closed(fd);
    throw error;
  }
}

/** `promised`: to users who are there already; `store`: what is not to be learned from the open file. */
async function describe(
  fd: number,
  options: StoreOptions,
  promised: number | null,
  store: Pick<Store, 'blockSize' | 'choices' | 'takesClientMemory' | 'close'>,
): Promise<Store> {
  const { path, size: wanted } = options;
  const status = await statOf(fd, { bigint: true });
  const identity = identityOf(status);
  const device = status.isBlockDevice() ? await describeBlockDevice(Number(status.rdev)) : null;
  const readOnly = options.readOnly || device?.readOnly === true;
  const present = device?.size ?? Number(status.size);
  if (promised === null) assertOfSize(path, present, wanted);
  else assertHolds(path, promised, present, 'opening');
  assertHoldsABlock(path, present, store.blockSize);
  const behind = present % store.blockSize;
  const canDiscard = !readOnly && (device?.canDiscard ?? (await canPunchHoles(fd, present)));
  const ofSize = (bytes: number): Store => ({
    ...store,
    fd,
    identity,
    size: bytes,
    warning: behind === 0 ? null : `the last ${behind} bytes of ${path} are no whole block and not part of it`,
    canDiscard,
    rotational: device?.rotational === true,
    readOnly,
    check: () => named('checking', path, () => assertSame(path, fd, bytes)),
    resize: (wantedNow) =>
      named('resizing', path, async () => {
        if (device) await assertGrown(path, Number(status.rdev), wantedNow);
        else await grow(fd, wantedNow, options);
        return ofSize(wantedNow);
      }),
    trim: () => (device ? Promise.resolve() : named('resizing', path, () => truncateTo(fd, bytes))),
  });
  return ofSize(promised ?? present - behind);
}

/** @param path of the open store, whose own name may be another thing's by now */
async function chosenBlockSize(
  path: string,
  options: StoreOptions,
  wanted: number | null,
): Promise<Pick<Store, 'blockSize' | 'choices'>> {
  if (wanted !== null) return { blockSize: wanted, choices: [] };
  const status = await stat(path);
  const device = status.isBlockDevice() ? await describeBlockDevice(status.rdev) : null;
  const size = device?.size ?? status.size;
  const own = device?.logicalBlockSize ?? SECTOR;
  const { bytes, why } = size === 0 ? blockSizeOfNew(options.size ?? 0) : await madeFor(path, options.path, size, own);
  return { blockSize: bytes, choices: [{ what: 'blockSize', value: bytes, why }] };
}

/** @param name what `path` is called in messages */
async function madeFor(path: string, name: string, size: number, own: number): Promise<ChosenBlockSize> {
  // One that was opened for direct I/O reads only into memory that is aligned.
  await using file = await open(path, constants.O_RDONLY);
  const read = readerOf(file);
  const container = await containerOf(read, size);
  if (container === null) return await blockSizeOf(read, size, own);
  throw refusal(name, `it is ${container} image; convert it ${HOW_TO_SERVE}`);
}

/**
 * Of a file system that does direct I/O and does not say how (btrfs): asked for by name, it is tried in blocks that every disk has.
 * Such a one writes to the cache what it cannot write past it.
 */
async function triedAlignment(fd: number, { direct }: StoreOptions): Promise<DirectIoAlignment | null> {
  return direct === true && (await takesDirectIo(fd, PAGE)) ? { memory: PAGE, offset: SECTOR } : null;
}

/** `auto` is direct where it can be, so that data is cached once, on top of the device, and not here again. */
function useDirectIo({ path, direct }: StoreOptions, alignment: DirectIoAlignment | null, blockSize: number): boolean {
  if (direct === false) return false;
  const blocks = alignment?.offset ?? 0;
  const fits = alignment !== null && blocks <= blockSize && alignment.memory <= PAGE;
  if (fits || direct === 'auto') return fits;
  throw refusal(
    path,
    alignment === null
      ? 'its file system does no direct I/O; leave direct out'
      : `direct I/O on it needs a blockSize of ${blocks}; configure that or leave direct out`,
  );
}

function readOnlyChoice({ readOnly: asked }: StoreOptions, readOnly: boolean): readonly Choice[] {
  return readOnly && !asked ? [{ what: 'readOnly', value: true, why: 'the block device is' }] : [];
}

function directIoChoice(
  { direct: wanted }: StoreOptions,
  alignment: DirectIoAlignment | null,
  direct: boolean,
): readonly Choice[] {
  if (wanted !== 'auto') return [];
  const blocks = `blocks of ${alignment?.offset ?? 0} bytes`;
  const needs = direct ? `its file system does it, in ${blocks}` : `it would take ${blocks}`;
  return [{ what: 'direct', value: direct, why: alignment === null ? 'its file system does none' : needs }];
}

/** Makes an empty file as large as configured. It stays empty until its space is allocated, so this can be repeated. */
async function fill(file: FileHandle, { size = 0, preallocate }: StoreOptions): Promise<void> {
  if (preallocate && size > 0) await fallocate(file.fd, KEEP_SIZE, 0, size);
  await file.truncate(size);
  await file.sync();
}

async function grow(fd: number, size: number, { path, readOnly, preallocate }: StoreOptions): Promise<void> {
  if (readOnly) throw refusal(path, 'it is read-only', 'resizing');
  const present = (await statOf(fd)).size;
  if (size <= present) return;
  if (preallocate) await fallocate(fd, KEEP_SIZE, present, size - present);
  await truncateTo(fd, size);
  await synced(fd);
}

async function assertGrown(path: string, number: number, size: number): Promise<void> {
  const present = (await describeBlockDevice(number)).size;
  if (present === size) return;
  const reason = `it is a block device of ${present} bytes; resize that first`;
  throw refusal(path, reason, 'resizing');
}

/** A hole behind the end changes nothing, and is refused by file systems that know no holes. */
async function canPunchHoles(fd: number, size: number): Promise<boolean> {
  return fallocate(fd, PUNCH_HOLE | KEEP_SIZE, size, PAGE).then(
    () => true,
    () => false,
  );
}

async function assertSame(path: string, fd: number, size: number): Promise<void> {
  await using place = await locate(path);
  const opened = await statOf(fd, { bigint: true });
  if (place.found === null) throw refusal(path, `there is no such file any more; ${PUT_BACK}`, 'checking');
  if (identityOf(await place.found.stat({ bigint: true })) !== identityOf(opened)) {
    throw refusal(path, `it is not what was opened; ${PUT_BACK}`, 'checking');
  }
  const now = opened.isBlockDevice() ? (await describeBlockDevice(Number(opened.rdev))).size : Number(opened.size);
  assertHolds(path, size, now, 'checking');
}

function assertHolds(path: string, size: number, present: number, operation: string): void {
  if (present >= size) return;
  throw refusal(path, `it shrank from ${size} to ${present} bytes; restore it`, operation);
}

/** `identity`: what the users of its device have; undefined: it is not known. */
async function assertIs(path: string, found: FileHandle | null, identity: string | undefined): Promise<void> {
  if (found === null) throw refusal(path, `there is no such file any more; ${PUT_BACK}`);
  if (identity === undefined || identity === identityOf(await found.stat({ bigint: true }))) return;
  throw refusal(path, `it is not what its device was made of; ${PUT_BACK}`);
}

/** A number of an inode is given to the next file as soon as it is free; the time of birth is not. */
function identityOf(status: BigIntStats): string {
  if (status.isBlockDevice()) return `block device ${String(status.rdev)}`;
  const { ino, dev, birthtimeNs } = status;
  return `inode ${String(ino)} of ${String(dev)}, made at ${String(birthtimeNs)}`;
}
