/** `xen-migrate receive`: takes guests that `xen-migrate migrate` sends. */
import type net from 'node:net';
import type { SimulatedHost } from '../host/simulated/host.js';
import { startReceive } from '../migrate/migrate.js';
import type { ReceiveResult } from '../migrate/types.js';
import { addressText, listenAt, parseAddress, requirePrivate, type Listening } from './address.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { errorLine, exitCodeOf, Interrupted } from './exit.js';
import { bytesText, countText, paintFor, speaksUnicode, timeText } from './format.js';
import { hostOption, openHost } from './hypervisor.js';
import { operands } from './operands.js';
import { indent, printJson, printLines } from './print.js';
import { proofFacts, proved, proveGuest } from './proof.js';
import { factLines } from './report.js';
import { UsageError } from '../errors.js';

const help = `usage: xen-migrate receive --listen ADDRESS [options]

Waits for guests that xen-migrate migrate sends, builds them and runs them. Prints its address when it is ready.

  --listen ADDRESS      tcp://HOST:PORT or unix:///PATH, also written HOST:PORT or /PATH; port 0 takes a free one
  --host sim            receive into a simulated host; each guest then checks its own memory
  --once                end after the first connection, with its outcome as exit code
  --insecure            allow plain TCP beyond this machine: memory travels unencrypted, anybody may send
  --json                print one JSON document on a line for each event
  --help                print this text

A guest that does not arrive leaves nothing behind. Without --once it goes on until it is stopped by SIGINT or
SIGTERM; guests of a simulated host end with it.
`;

async function run(argv: readonly string[], io: CommandIo, signal: AbortSignal): Promise<number> {
  const { values, positionals } = parseArguments(argv, {
    allowPositionals: true,
    options: {
      ...hostOption,
      listen: { type: 'string' },
      once: { type: 'boolean' },
      insecure: { type: 'boolean' },
      json: { type: 'boolean' },
    },
  });
  operands(positionals, []);
  if (values.listen === undefined) throw new UsageError('--listen ADDRESS is missing');
  const address = parseAddress(values.listen);
  requirePrivate(address, values.insecure === true);
  const host = openHost(values.host, 2);
  try {
    const service = new Service(io, host, values.json === true, values.once === true, signal);
    return await service.run(await listenAt(address, (socket) => service.take(socket)));
  } finally {
    await host.close();
  }
}

/** Receives one guest after the other, or several at once. */
class Service {
  readonly #io: CommandIo;
  readonly #host: SimulatedHost;
  readonly #json: boolean;
  readonly #once: boolean;
  readonly #signal: AbortSignal;
  readonly #jobs = new Set<Promise<void>>();
  /** With `--once`: settles the command. */
  #finish: ((code: number) => void) | undefined;
  #busy = false;

  constructor(io: CommandIo, host: SimulatedHost, json: boolean, once: boolean, signal: AbortSignal) {
    this.#io = io;
    this.#host = host;
    this.#json = json;
    this.#once = once;
    this.#signal = signal;
  }

  /** Until the signal, or the one guest, ends it. Resolves to the exit code. */
  async run(listening: Listening): Promise<number> {
    const onAbort = (): void => {
      // Stopping a service that has nothing to do is its normal end; stopping `--once` is not what it was started for.
      const { reason } = this.#signal as { reason: unknown };
      const code = this.#once && reason instanceof Interrupted ? reason.exitCode : ExitCode.OK;
      if (!this.#busy || !this.#once) this.#finish?.(code);
    };
    try {
      const done = new Promise<number>((resolve) => (this.#finish = resolve));
      this.#signal.addEventListener('abort', onAbort, { once: true });
      if (this.#signal.aborted) onAbort();
      const where = addressText(listening.address);
      if (this.#json) printJson(this.#io.stdout, { event: 'listening', address: where }, false);
      else printLines(this.#io.stdout, [`listening at ${where}`]);
      return await done;
    } finally {
      this.#signal.removeEventListener('abort', onAbort);
      const closed = listening.close();
      await Promise.all(this.#jobs);
      await closed;
    }
  }

  /** A connection came. */
  take(socket: net.Socket): void {
    if (this.#signal.aborted || (this.#once && this.#busy)) {
      socket.destroy();
      return;
    }
    this.#busy = true;
    const job = this.#receive(socket).then((code) => {
      this.#jobs.delete(job);
      if (this.#once) this.#finish?.(code);
    });
    this.#jobs.add(job);
  }

  async #receive(socket: net.Socket): Promise<number> {
    const { stderr } = this.#io;
    try {
      const result = await startReceive(this.#host, { from: socket, signal: this.#signal }).result;
      return await this.#report(result);
    } catch (error) {
      const code = exitCodeOf(error, this.#signal);
      if (this.#json)
        printJson(this.#io.stdout, { event: 'failed', error: errorLine(error), exitCode: code }, false);
      stderr.write(`xen-migrate receive: ${errorLine(error)}\n`);
      return code;
    }
  }

  async #report(result: ReceiveResult): Promise<number> {
    const { domid, offer, state, bytes, pages, elapsed, sourceReleased } = result;
    const { kind } = this.#host.guest(domid);
    const idle = /workload=idle/.test(result.config ?? '');
    const moves = state === 'running' && !idle;
    const proof = await proveGuest(this.#host, domid, moves, this.#signal);
    const facts = proofFacts(proof, moves && proof.checkable);
    const ok = proved(facts);
    const name = offer.name ?? `domain ${domid}`;
    if (this.#json) {
      const { id } = result;
      printJson(
        this.#io.stdout,
        { event: 'received', ok, id, name, domid, kind, state, bytes, pages, elapsed, sourceReleased, proof },
        false,
      );
    } else {
      const paint = paintFor(this.#io.stdout, this.#io.env);
      printLines(this.#io.stdout, [
        `received ${paint.bold(name)} as domain ${domid}: ${kind} guest, ${state}; ` +
          `${countText(pages)} pages, ${bytesText(bytes)} in ${timeText(elapsed)}`,
        ...indent(factLines(facts, paint, speaksUnicode(this.#io.env))),
      ]);
    }
    if (!sourceReleased) {
      this.#io.stderr.write(
        `xen-migrate receive: ${name}: the sender did not confirm that its copy is gone; if a suspended copy is left there, destroy it\n`,
      );
    }
    return ok ? ExitCode.OK : ExitCode.FAILED;
  }
}

export const receive: Command = {
  name: 'receive',
  summary: 'waits for guests that migrate sends, and runs them',
  help,
  run,
};
