/** Another would be made for each abort, with a stack, which costs more than all else about it. */
const FIRED = new Error('no longer wanted');

/**
 * Fires once. Most of what could be interrupted ends before, and without asking for the signal: so there is one only when it
 * is asked for.
 */
export class Interrupt {
  #controller: AbortController | null = null;
  #fired = false;

  get signal(): AbortSignal {
    this.#controller ??= new AbortController();
    if (this.#fired) this.#controller.abort(FIRED);
    return this.#controller.signal;
  }

  fire(): void {
    this.#fired = true;
    this.#controller?.abort(FIRED);
  }
}

/** Resolves when it fires. */
export async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }));
}
