import type { OpenBackend } from '../../../backends/interface.js';
import { within } from '../../timing/deadline.js';

/** A large archive is read through when it is opened. What takes longer goes on, and the device with it when it is done. */
const OPEN_DEADLINE_MS = 120_000;
const CHECK_DEADLINE_MS = 30_000;

/** The backend of one device: one attempt at a time opens it, and one look at a time checks that its data is there. */
export class DeviceBackend {
  readonly #device: string;
  readonly #attempt: () => Promise<OpenBackend>;
  #opening: Promise<OpenBackend> | null = null;
  #checking: Promise<void> | null = null;
  /** What is served; null until an attempt succeeded. */
  current: OpenBackend | null = null;

  constructor(device: string, attempt: () => Promise<OpenBackend>) {
    this.#device = device;
    this.#attempt = attempt;
  }

  /** Resolves when no attempt is under way. */
  get settled(): Promise<unknown> {
    return Promise.resolve(this.#opening).catch(() => undefined);
  }

  /** Every caller shares the attempt under way; rejects with why it failed. */
  open(): Promise<OpenBackend> {
    if (this.current !== null) return Promise.resolve(this.current);
    this.#opening ??= this.#attempt().finally(() => {
      this.#opening = null;
    });
    return this.#opening;
  }

  /** As `open`, but rejects when the attempt takes too long, or `interrupted` fires; then the attempt goes on. */
  openSoon(interrupted?: AbortSignal): Promise<OpenBackend> {
    return within(`opening the backend of device ${this.#device}`, OPEN_DEADLINE_MS, this.open(), interrupted);
  }

  /** Rejects when the data is not there, or the look takes too long; then the look goes on. */
  async check(): Promise<void> {
    this.#checking ??= (this.current?.check?.() ?? Promise.resolve()).finally(() => {
      this.#checking = null;
    });
    await within(`checking the backend of device ${this.#device}`, CHECK_DEADLINE_MS, this.#checking);
  }
}
