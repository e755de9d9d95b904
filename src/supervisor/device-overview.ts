import { machine, type DeviceState } from './machine.js';

/**
 * Every step of a state that leads on has a deadline, and all of one state's together are below five minutes. A device
 * that is in such a state for longer is one that the supervisor has lost sight of.
 */
const LONGEST_PASSAGE_MS = 300_000;
/** What STATUS= names; a service manager shows one line. */
const MOST_NAMED = 3;

interface Seen {
  readonly state: DeviceState;
  readonly since: number;
}

/** The states of all devices, as far as those who only look at the supervisor want to know. */
export class DeviceOverview {
  readonly #now: () => number;
  readonly #devices = new Map<string, Seen>();

  /** @param now milliseconds of a monotonic clock */
  constructor(now: () => number) {
    this.#now = now;
  }

  /** To be told of every change, also from a state to itself: that is progress too. */
  changed(name: string, state: DeviceState): void {
    if (state === 'gone') this.#devices.delete(name);
    else this.#devices.set(name, { state, since: this.#now() });
  }

  /** `2 devices live`, or `1 of 2 devices live: name is failed`. */
  line(): string {
    const all = [...this.#devices];
    const others = all.filter(([, { state }]) => state !== 'live');
    const total = `${String(all.length)} ${all.length === 1 ? 'device' : 'devices'} live`;
    if (others.length === 0) return all.length === 0 ? 'no devices' : total;
    const named = others.slice(0, MOST_NAMED).map(([name, { state }]) => `${name} is ${state}`);
    const more = others.length > MOST_NAMED ? [`${String(others.length - MOST_NAMED)} more are not live`] : [];
    return `${String(all.length - others.length)} of ${total}: ${[...named, ...more].join(', ')}`;
  }

  /**
   * The devices that the supervisor should be working on and is not. A degraded or failed one is none of them: it waits
   * for a person, and another supervisor could do nothing else.
   */
  lost(): string[] {
    const now = this.#now();
    return [...this.#devices]
      .filter(([, { state, since }]) => machine[state].done !== null && now - since > LONGEST_PASSAGE_MS)
      .map(([name]) => name);
  }
}
