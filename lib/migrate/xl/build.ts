/** A domain that `xl restore` is building: from the configuration on, until its stream is through. */
import * as fs from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { UsageError, withCleanupError } from '../../errors.js';
import { encodeXlHeader } from '../../stream/xl/header.js';
import type { Toolstack } from '../../toolstack/toolstack.js';
import { XlRestoreChild } from '../../toolstack/xl/restore-child.js';
import { xlDomid, type XlSettings } from '../../toolstack/xl/run.js';
import { checkName } from '../../toolstack/xl/toolstack.js';
import { cancellation } from '../../transport/failure.js';
import { nameIn } from '../naming.js';

/** How `xl restore` is run. */
export interface XlRestoreSettings extends XlSettings {
  /** Path of the save helper for libxl, or `stock` for libxl's own. Default: this package's. */
  readonly helper?: string | undefined;
  /**
   * Leave xl's daemon behind, which sees to the guest's shutdowns and reboots, as after stock `xl restore` and
   * `xl migrate-receive`. Default true.
   */
  readonly monitor?: boolean | undefined;
  /** ms from the stream's last byte until xl has set up all devices. Default 120 000. */
  readonly finishMs?: number | undefined;
  /** ms that xl has to take down by itself what it built, when its stream ends early. Default 10 000. */
  readonly patienceMs?: number | undefined;
}

/** Time between two looks for the domain, ms. */
const LOOK_MS = 50;

/** Names of domains that are being built by this process. */
const underWay = new Set<string>();

export class XlBuild {
  readonly child: XlRestoreChild;
  readonly #name: string;
  readonly #toolstack: Toolstack;
  readonly #settings: XlRestoreSettings;
  #domid: number | undefined;

  private constructor(
    child: XlRestoreChild,
    name: string,
    toolstack: Toolstack,
    settings: XlRestoreSettings,
  ) {
    this.child = child;
    this.#name = name;
    this.#toolstack = toolstack;
    this.#settings = settings;
  }

  get domid(): number {
    return this.#domid as number;
  }

  /**
   * Starts xl and resolves when the domain is there. xl builds one domain of a host at a time, whoever asks: it waits until
   * another one is done.
   *
   * Rejects with UsageError (no name, or another domain has it), XlError, TransportError, or the signal's reason; nothing
   * is left then.
   */
  static async start(
    config: string,
    toolstack: Toolstack,
    settings: XlRestoreSettings,
    signal: AbortSignal | undefined,
  ): Promise<XlBuild> {
    const name = checkName(nameIn(config) ?? '');
    const helper = await helperPath(settings);
    if (underWay.has(name)) throw new UsageError(`a domain ${JSON.stringify(name)} is being built already`);
    underWay.add(name);
    try {
      const taken = await find(name, toolstack, settings);
      if (taken !== undefined) {
        throw new UsageError(
          `there is a domain ${JSON.stringify(name)} already, domain ${taken}: destroy it if it is left of a migration that failed`,
        );
      }
      const { program, monitor, patienceMs } = settings;
      const child = await XlRestoreChild.start({ program, monitor, patienceMs, helper });
      const build = new XlBuild(child, name, toolstack, settings);
      try {
        await build.#begin(encodeXlHeader({ config }), signal);
        return build;
      } catch (error) {
        throw await build.fail(error);
      }
    } finally {
      underWay.delete(name);
    }
  }

  /** Ends xl, and destroys what it has built. Returns the error to throw. */
  async fail(error: unknown): Promise<unknown> {
    const exitCode = await this.child.giveUp(error);
    try {
      const there = await this.#find();
      const unfinished = exitCode !== 0 && !this.child.killed;
      // An xl that fails by itself takes down what it built; the name may be another one's by now.
      if (unfinished && there !== this.#domid) return error;
      // When xl began, nobody had the name.
      this.#domid ??= there;
      if (this.#domid !== undefined) await this.#toolstack.destroy(this.#domid);
    } catch (later) {
      withCleanupError(error, later);
    }
    return error;
  }

  async #begin(header: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    const { child } = this;
    const stop = new AbortController();
    const onAbort = (): void => stop.abort(cancellation(signal?.reason, 'building the domain'));
    signal?.addEventListener('abort', onAbort, { once: true });
    if (signal?.aborted === true) onAbort();
    void child.exited.then((exitCode) => stop.abort(child.failure(exitCode)));
    const writing = child.sink.write([header]);
    writing.catch(() => undefined);
    try {
      for (;;) {
        this.#domid = await this.#find();
        if (this.#domid !== undefined) break;
        await delay(LOOK_MS, undefined, { signal: stop.signal }).catch(() => {
          throw stop.signal.reason;
        });
      }
      // xl has read all of it before it made the domain.
      await writing;
    } finally {
      signal?.removeEventListener('abort', onAbort);
    }
  }

  #find(): Promise<number | undefined> {
    return find(this.#name, this.#toolstack, this.#settings);
  }
}

async function find(
  name: string,
  toolstack: Toolstack,
  settings: XlRestoreSettings,
): Promise<number | undefined> {
  return toolstack.findByName === undefined ? xlDomid(name, settings) : toolstack.findByName(name);
}

/** This package's save helper lies beside this file in the built package. */
const OWN_HELPER = new URL('../../helper/bundle/xen-migrate-save-helper.cjs', import.meta.url);

async function helperPath({ helper = fileURLToPath(OWN_HELPER) }: XlRestoreSettings): Promise<string> {
  if (helper === 'stock') return helper;
  try {
    await fs.access(helper, fs.constants.X_OK);
    return helper;
  } catch (cause) {
    throw new UsageError(`the save helper for xl cannot be run: ${helper}`, { cause });
  }
}
