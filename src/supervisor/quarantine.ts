import { MOST_MARKED, type MarkedRequest, type RequestIdentity } from '../native/binding.js';

/** More than that crash the backend for a reason that is not in the requests. */
export const MOST_QUARANTINED = 64;

/** What a generation that died had not answered. */
export interface Unanswered {
  /** For each process that died by itself, or hung: what its backend had. */
  readonly held: readonly (readonly RequestIdentity[])[];
  /** What the other processes' backends had, and what waited for its turn. */
  readonly others: readonly RequestIdentity[];
}

interface Suspect extends RequestIdentity {
  readonly crashes: number;
}

export interface Judgement {
  /** Quarantined from now on. */
  readonly convicted: readonly MarkedRequest[];
  /** As guilty, but there is no room. */
  readonly unplaced: readonly MarkedRequest[];
}

const NOBODY: Judgement = { convicted: [], unplaced: [] };

/**
 * Finds the requests that crash a device's backend. A request is quarantined when a process has died with it `after`
 * times, never having answered it in between. Many may be under way in each of these crashes by mere chance, redelivered
 * together after each; so the last time, those that are so far suspected are given to the backend one by one (`marked`),
 * and the one that it dies with is the one.
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
      .map((suspect) => ({ ...suspect, refused: false }));
    return [...refused, ...suspected].slice(0, MOST_MARKED);
  }

  /** A generation that served died of its own accord. */
  crashed({ held, others }: Unanswered): Judgement {
    if (this.#after === 0) return NOBODY;
    const suspects = this.#stillSuspected([...held.flat(), ...others]);
    for (const [key, request] of unique(held.flat())) {
      const crashes = (this.#suspects.get(key)?.crashes ?? 0) + 1;
      if (!this.#quarantined.has(key)) suspects.set(key, { ...identityOf(request), crashes });
    }
    this.#suspects = suspects;
    const guilty = held.flatMap((requests) => {
      const due = [...unique(requests).keys()].filter((key) => (suspects.get(key)?.crashes ?? 0) >= this.#after);
      return due.length === 1 ? due : [];
    });
    return this.#convict(suspects, guilty);
  }

  /** A generation that served was ended from outside, which says nothing against the requests that it had. */
  interrupted({ held, others }: Unanswered): void {
    this.#suspects = this.#stillSuspected([...held.flat(), ...others]);
  }

  /** What an earlier supervisor had marked, when its device is adopted. */
  restore(marked: readonly MarkedRequest[]): void {
    this.clear();
    for (const request of marked.filter(({ refused }) => refused)) this.#quarantined.set(keyOf(request), request);
    const suspects = marked.filter(({ refused }) => !refused);
    this.#suspects = new Map(
      suspects.map((request) => [keyOf(request), { ...identityOf(request), crashes: request.crashes }]),
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
      const request = { ...suspect, refused: true };
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
  return `${String(operation)} ${String(startSector)} ${String(sectors)}`;
}

function identityOf({ operation, startSector, sectors }: RequestIdentity): RequestIdentity {
  return { operation, startSector, sectors };
}
