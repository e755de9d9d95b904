import { MOST_MARKED, type MarkedRequest } from '../../native/addon/shared-pages.js';
import type { RequestIdentity } from '../../native/request.js';
import { isFlush } from '../../api/operations.js';

/** More than that crash the backend for a reason that is not in the requests. */
export const MOST_QUARANTINED = 64;

/** What a generation that died had not answered. */
export interface Outstanding {
  /** For each process that died by itself, or hung: what its backend had. */
  readonly ofDead: readonly (readonly RequestIdentity[])[];
  /** What the other processes' backends had, and what waited for its turn. */
  readonly others: readonly RequestIdentity[];
}

interface Suspect extends RequestIdentity {
  readonly crashes: number;
  /** How many hangs it alone was the cause of, while later requests were answered. */
  readonly hangs: number;
}

export interface Judgement {
  /** Quarantined from now on. */
  readonly convicted: readonly MarkedRequest[];
  /** Found guilty as well, but there is no room to mark them. */
  readonly unplaced: readonly MarkedRequest[];
}

const NOBODY: Judgement = { convicted: [], unplaced: [] };

/**
 * Finds the requests that crash a device's backend. A request is quarantined when a process has died with it `after`
 * times, never having answered it in between. Many may be under way in each of these crashes by mere chance, redelivered
 * together after each; so the last time, those that are so far suspected are given to the backend one by one (`marked`),
 * and the one that it dies with is the one.
 *
 * A hang says nothing against a request, unless it is the only one that was not answered while later ones were: then it
 * is known without being alone. Flushes are never suspected: each is like all others, and refusing them all would leave
 * no way to have data on stable storage.
 */
export class Quarantine {
  readonly #after: number;
  #suspects: ReadonlyMap<string, Suspect> = new Map();
  readonly #quarantined = new Map<string, MarkedRequest>();

  /** `after`: 0 for never. */
  constructor(after: number) {
    this.#after = after;
  }

  /** In the order in which they were found. */
  get quarantined(): readonly MarkedRequest[] {
    return [...this.#quarantined.values()];
  }

  /** What the queues of the next generation have to know. */
  get marked(): readonly MarkedRequest[] {
    const refused = this.quarantined;
    const enough = Math.max(1, this.#after - 1);
    const suspected = [...this.#suspects.values()]
      .filter(({ crashes }) => crashes >= enough)
      .sort((one, other) => other.crashes - one.crashes)
      .map((suspect) => ({ ...identityOf(suspect), crashes: suspect.crashes, refused: false }));
    return [...refused, ...suspected].slice(0, MOST_MARKED);
  }

  /** A generation that served died of its own accord. */
  crashed({ ofDead, others }: Outstanding): Judgement {
    if (this.#after === 0) return NOBODY;
    const suspects = this.#stillSuspected([...ofDead.flat(), ...others]);
    for (const [key, request] of unique(ofDead.flat())) {
      if (this.#quarantined.has(key) || isFlush(request)) continue;
      const { crashes = 0, hangs = 0 } = this.#suspects.get(key) ?? {};
      suspects.set(key, { ...identityOf(request), crashes: crashes + 1, hangs });
    }
    this.#suspects = suspects;
    const guilty = ofDead.flatMap((requests) => {
      // It may as well be that one.
      if (requests.some(isFlush)) return [];
      const due = [...unique(requests).keys()].filter((key) => (suspects.get(key)?.crashes ?? 0) >= this.#after);
      return due.length === 1 ? due : [];
    });
    return this.#convict(suspects, guilty);
  }

  /** A generation that served was ended because it hung; `accused`: over this request and no other. */
  hung({ ofDead, others }: Outstanding, accused: RequestIdentity | null): Judgement {
    if (this.#after === 0) return NOBODY;
    const suspects = this.#stillSuspected([...ofDead.flat(), ...others]);
    this.#suspects = suspects;
    if (accused === null || isFlush(accused)) return NOBODY;
    const key = keyOf(accused);
    const { crashes = 0, hangs = 0 } = suspects.get(key) ?? {};
    suspects.set(key, { ...identityOf(accused), crashes, hangs: hangs + 1 });
    return this.#convict(suspects, hangs + 1 >= this.#after ? [key] : []);
  }

  /** A generation that served was ended from outside, which says nothing against the requests that it had. */
  interrupted({ ofDead, others }: Outstanding): void {
    this.#suspects = this.#stillSuspected([...ofDead.flat(), ...others]);
  }

  /** What an earlier supervisor had marked, when its device is adopted. */
  restore(marked: readonly MarkedRequest[]): void {
    this.clear();
    const known = marked.filter((request) => !isFlush(request));
    for (const request of known.filter(({ refused }) => refused)) this.#quarantined.set(keyOf(request), request);
    const suspects = known.filter(({ refused }) => !refused);
    this.#suspects = new Map(
      suspects.map((request) => [keyOf(request), { ...identityOf(request), crashes: request.crashes, hangs: 0 }]),
    );
  }

  /** Forgets everything. */
  clear(): void {
    this.#suspects = new Map();
    this.#quarantined.clear();
  }

  /** What was answered is above suspicion. */
  #stillSuspected(unanswered: readonly RequestIdentity[]): Map<string, Suspect> {
    const keys = unique(unanswered);
    return new Map([...this.#suspects].filter(([key]) => keys.has(key)));
  }

  #convict(suspects: Map<string, Suspect>, guilty: readonly string[]): Judgement {
    const convicted: MarkedRequest[] = [];
    const unplaced: MarkedRequest[] = [];
    for (const key of new Set(guilty)) {
      const suspect = suspects.get(key);
      if (suspect === undefined) continue;
      const request = { ...identityOf(suspect), crashes: suspect.crashes + suspect.hangs, refused: true };
      if (this.#quarantined.size >= MOST_QUARANTINED) {
        unplaced.push(request);
        continue;
      }
      suspects.delete(key);
      this.#quarantined.set(key, request);
      convicted.push(request);
    }
    return { convicted, unplaced };
  }
}

function unique(requests: readonly RequestIdentity[]): Map<string, RequestIdentity> {
  return new Map(requests.map((request) => [keyOf(request), request]));
}

function keyOf({ operation, startSector, sectors }: RequestIdentity): string {
  return `${operation} ${startSector} ${sectors}`;
}

function identityOf({ operation, startSector, sectors }: RequestIdentity): RequestIdentity {
  return { operation, startSector, sectors };
}
