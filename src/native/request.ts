/** A request as it is recognised when it comes again, in whatever queue. */
export interface RequestIdentity {
  /** `UBLK_IO_OP_*`: 0 read, 1 write, 2 flush, 3 discard, 5 write zeroes. */
  readonly operation: number;
  readonly startSector: number;
  readonly sectors: number;
}

/** `UBLK_IO_OP_*` of linux/ublk_cmd.h. */
export const Operation = { read: 0, write: 1, flush: 2, discard: 3, writeZeroes: 5 } as const;
