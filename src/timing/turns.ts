const AT_ONCE = 8;

export interface Turn {
  /** Resolves when it has begun. */
  readonly begun: Promise<void>;
  /** Whether it has begun or not. */
  readonly end: () => void;
}

/**
 * Lets a few at a time do what keeps a machine busy, first come first served: what has to answer before a deadline would
 * else wait for the processes of hundreds of others. A turn that lasts longer than `patienceMs` no longer counts, and keeps
 * none waiting.
 */
export class Turns {
  readonly #patienceMs: number | undefined;
  readonly #waiting = new Map<symbol, () => void>();
  readonly #underWay = new Map<symbol, NodeJS.Timeout | undefined>();

  constructor(patienceMs?: number) {
    this.#patienceMs = patienceMs;
  }

  take(): Turn {
    const turn = Symbol('turn');
    const begun = new Promise<void>((resolve) => {
      this.#waiting.set(turn, resolve);
    });
    this.#beginNext();
    const end = (): void => {
      this.#waiting.delete(turn);
      this.#end(turn);
    };
    return { begun, end };
  }

  #beginNext(): void {
    for (const [turn, begin] of this.#waiting) {
      if (this.#underWay.size >= AT_ONCE) return;
      this.#waiting.delete(turn);
      const impatient = (): void => this.#end(turn);
      const timer = this.#patienceMs === undefined ? undefined : setTimeout(impatient, this.#patienceMs).unref();
      this.#underWay.set(turn, timer);
      begin();
    }
  }

  #end(turn: symbol): void {
    clearTimeout(this.#underWay.get(turn));
    if (this.#underWay.delete(turn)) this.#beginNext();
  }
}
