import type { MarkedRequest } from '../../native/addon/shared-pages.js';
import type { CrashFiles } from './crash-files.js';
import { crashReport, causeOf, describeCrash, describeQuarantined, quarantinedStatus } from './crash-report.js';
import type { Log } from '../../log/log.js';
import type { Death, Remains } from '../ublk/kernel.js';
import { oomKills } from './oom-kills.js';
import { MOST_QUARANTINED, Quarantine, type Outstanding } from './quarantine.js';
import type { CrashStatus, QuarantinedRequestStatus } from '../../api/status.js';

export interface DeviceCrashesOptions {
  readonly device: string;
  readonly backend: string;
  /** Crashes that make a request one to be refused; 0: none ever is. */
  readonly poisonAfter: number;
  readonly log: Log;
  /** null: reports are in the log and in `status` alone. */
  readonly files: CrashFiles | null;
}

/** More of them in the device's reason than a person reads. */
const MOST_NAMED = 3;

/** What is remembered of the deaths of a device's generations: the last report, and the requests that caused them. */
export class DeviceCrashes {
  readonly #options: DeviceCrashesOptions;
  readonly #quarantine: Quarantine;
  #last: CrashStatus | null = null;
  #oomKills = oomKills();

  constructor(options: DeviceCrashesOptions) {
    this.#options = options;
    this.#quarantine = new Quarantine(options.poisonAfter);
  }

  get last(): CrashStatus | null {
    return this.#last;
  }

  get quarantined(): readonly QuarantinedRequestStatus[] {
    return this.#quarantine.quarantined.map(quarantinedStatus);
  }

  /** What an earlier supervisor had marked, when its device is adopted. */
  restore(marked: readonly MarkedRequest[]): void {
    this.#quarantine.restore(marked);
  }

  /** What the next generation has to know. */
  get marked(): readonly MarkedRequest[] {
    return this.#quarantine.marked;
  }

  /** What `status` says of crashes while the device serves; null: nothing. */
  get reason(): string | null {
    const { quarantined } = this.#quarantine;
    if (quarantined.length === 0) return null;
    const named = quarantined.slice(0, MOST_NAMED).map(describeQuarantined);
    const more = quarantined.length > MOST_NAMED ? [`${quarantined.length - MOST_NAMED} more`] : [];
    return `in quarantine, answered with EIO: ${[...named, ...more].join('; ')}; ${this.#advice}`;
  }

  /** To be told when all processes of a generation are dead that we did not end. */
  died(death: Death): void {
    const { device, backend, log } = this.#options;
    const convicted = this.#judge(death);
    const kills = oomKills();
    const newKills = kills === null || this.#oomKills === null ? null : kills - this.#oomKills;
    this.#oomKills = kills;
    this.#last = crashReport(death, { device, backend, convicted, oomKills: newKills });
    const { generation, cause, inflight } = this.#last;
    log.warn({ device, generation, cause, inflight, oomKills: newKills }, describeCrash(this.#last));
    for (const request of convicted) {
      log.error({ device }, `in quarantine, answered with EIO: ${describeQuarantined(request)}; ${this.#advice}`);
    }
    this.#save(this.#last);
  }

  /** The device is live again. */
  recovered(pauseMs: number): void {
    if (this.#last === null || this.#last.pauseMs !== null) return;
    this.#last = { ...this.#last, pauseMs: Math.round(pauseMs * 10) / 10 };
    this.#save(this.#last);
  }

  /** What was refused is given to the backend again. */
  clearQuarantine(): void {
    const { device, log } = this.#options;
    const count = this.#quarantine.quarantined.length;
    this.#quarantine.clear();
    log.info({ device }, `the quarantine of device ${device} is lifted; ${count} requests were in it`);
  }

  #judge({ exit, remains }: Death): readonly MarkedRequest[] {
    // Nothing had come from the kernel yet, so that what is not held need not have been answered.
    if (remains.outstanding.length === 0 && answeredNothing(remains)) return [];
    const cause = causeOf(exit, remains);
    if (cause === 'killed' || cause === 'unknown') {
      this.#quarantine.interrupted(outstandingOf(remains));
      return [];
    }
    const { hung } = remains;
    const unanswered = outstandingOf(remains);
    const { convicted, unplaced } =
      hung === null ? this.#quarantine.crashed(unanswered) : this.#quarantine.hung(unanswered, hung.overtaken);
    const { device, log } = this.#options;
    for (const request of unplaced) {
      log.error({ device }, `not put into quarantine, which has ${MOST_QUARANTINED}: ${describeQuarantined(request)}`);
    }
    return convicted;
  }

  #save(report: CrashStatus): void {
    const { files, device } = this.#options;
    if (files === null) return;
    const file = files.pathOf({ device, generation: report.generation, at: report.exit.at });
    void files.save(file, { ...report, file }).then((saved) => {
      const { generation, file: known } = this.#last ?? report;
      if (saved && known === null && generation === report.generation && this.#last !== null) {
        this.#last = { ...this.#last, file };
      }
    });
  }

  get #advice(): string {
    return `ublk-supervisor recover ${this.#options.device} --clear-quarantine lifts that`;
  }
}

function answeredNothing({ answered }: Remains): boolean {
  return Object.values(answered).every((count) => count === 0);
}

function outstandingOf({ died, outstanding, marked }: Remains): Outstanding {
  return {
    ofDead: died.map((queue) => outstanding.filter((request) => request.queue === queue)),
    others: [...outstanding.filter(({ queue }) => !died.includes(queue)), ...marked],
  };
}
