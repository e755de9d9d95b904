/** `major:minor` of a block device's `rdev` or a file's `dev`, as /proc/PID/mountinfo and /sys/dev name it. */
export function deviceNumber(rdev: number): string {
  return `${String((rdev >> 8) & 0xfff)}:${String((rdev & 0xff) | ((rdev >> 12) & 0xfff00))}`;
}
