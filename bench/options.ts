/** What `scripts/bench --help` tells of. */
export interface BenchOptions {
  readonly times: number;
  readonly rounds: number;
  readonly seconds: number;
  readonly backend: string | undefined;
  readonly workload: string;
  readonly against: string | undefined;
  readonly devices: readonly number[];
}
