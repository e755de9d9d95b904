import type { DeviceState } from '../../api/status.js';
import { machine } from '../device/machine.js';

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
  readonly #devices = new Set<string>();
  /** The devices that are not live. They are few, so a change of state does not go through all devices. */
  readonly #others = new Map<string, Seen>();

  /** @param now milliseconds of a monotonic clock */
  constructor(now: () => number) {
    this.#now = now;
  }

  /** To be told of every change, also from a state to itself: that is progress too. */
  changed(name: string, state: DeviceState): void {
    if (state === 'gone') this.#devices.delete(name);
    else this.#devices.add(name);
    if (state === 'gone' || state === 'live') this.#others.delete(name);
    else this.#others.set(name, { state, since: this.#now() });
  }

  /** `2 devices live`, or `1 of 2 devices live: name is failed`. */
  line(): string {
    const all = this.#devices.size;
    const others = this.#others.size;
    const total = `${all} ${all === 1 ? 'device' : 'devices'} live`;
    if (others === 0) return all === 0 ? 'no devices' : total;
    const named: string[] = [];
    for (const [name, { state }] of this.#others) {
      if (named.length === MOST_NAMED) break;
      named.push(`${name} is ${state}`);
    }
    const more = others > MOST_NAMED ? [`${others - MOST_NAMED} more are not live`] : [];
    return `${all - others} of ${total}: ${[...named, ...more].join(', ')}`;
  }

  /**
   * The devices that the supervisor should be working on and is not. A degraded or failed one is none of them: it waits
   * for a person, and another supervisor could do nothing else.
   */
  lost(): string[] {
    const now = this.#now();
    return [...this.#others]
      .filter(([, { state, since }]) => machine[state].done !== null && now - since > LONGEST_PASSAGE_MS)
      .map(([name]) => name);
  }
}
