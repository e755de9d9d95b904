/** `major:minor` of a block device's `rdev` or a file's `dev`, as /proc/PID/mountinfo and /sys/dev name it. */
export function deviceNumber(rdev: number): string {
  return `${(rdev >> 8) & 0xfff}:${(rdev & 0xff) | ((rdev >> 12) & 0xfff00)}`;
}
