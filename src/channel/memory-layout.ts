const PAGE = 4096;

/**
 * The first page of the file that a device's shared memory is in. Behind it is what the backend asked for, one after the
 * other, each behind a page that has its name and size.
 */
export const FIRST_PAGE = Buffer.alloc(PAGE);
FIRST_PAGE.write('shared memory of an ublk-supervisor device\n');
