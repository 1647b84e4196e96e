/** `xen-migrate receive`: takes guests that `xen-migrate migrate` sends. */
import type net from 'node:net';
import { printable } from '../bytes/printable.js';
import { startReceive } from '../migrate/migrate.js';
import type { ReceiveResult } from '../migrate/types.js';
import { addressText, listenAt, parseAddress, requirePrivate, type Listening } from './address.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { errorLine, exitCodeOf, Interrupted } from './exit.js';
import { bytesText, countText, paintFor, speaksUnicode, timeText } from './format.js';
import { arrivedGuest } from './guests.js';
import { hostOption, openHost, type OpenHost } from './hypervisor.js';
import { operands } from './operands.js';
import { indent, printJson, printLines } from './print.js';
import { proofFacts, proved, proveGuest, type Proof } from './proof.js';
import { factLines, type Fact } from './report.js';
import { UsageError } from '../errors.js';

const help = `usage: xen-migrate receive --listen ADDRESS [options]

Waits for guests that xen-migrate migrate sends, builds them and runs them. Prints its address when it is ready.

  --listen ADDRESS      tcp://HOST:PORT or unix:///PATH, also written HOST:PORT or /PATH; port 0 takes a free one
  --host HOST           xen: this machine (default); sim: a simulated host, where each guest checks its own memory
  --once                end after the first guest, with its outcome as exit code
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
  const open = await openHost(values, [], 2, io);
  try {
    const service = new Service(io, open, values.json === true, values.once === true, signal);
    return await service.run(await listenAt(address, (socket) => service.take(socket)));
  } finally {
    await open.host.close();
  }
}

/** Receives one guest after the other, or several at once. */
class Service {
  readonly #io: CommandIo;
  readonly #open: OpenHost;
  readonly #json: boolean;
  readonly #once: boolean;
  readonly #signal: AbortSignal;
  readonly #jobs = new Set<Promise<void>>();
  readonly #done: Promise<number>;
  #finish: ((code: number) => void) | undefined;
  /** With `--once`: the one guest is coming. */
  #taken = false;

  constructor(io: CommandIo, open: OpenHost, json: boolean, once: boolean, signal: AbortSignal) {
    this.#io = io;
    this.#open = open;
    this.#json = json;
    this.#once = once;
    this.#signal = signal;
    this.#done = new Promise((resolve) => (this.#finish = resolve));
  }

  /** Until the signal, or the one guest, ends it. Resolves to the exit code. */
  async run(listening: Listening): Promise<number> {
    const onAbort = (): void => {
      // Stopping a service is its normal end; stopping `--once` before its guest came is not.
      const reason: unknown = this.#signal.reason;
      this.#finish?.(this.#once && reason instanceof Interrupted ? reason.exitCode : ExitCode.OK);
    };
    try {
      this.#signal.addEventListener('abort', onAbort, { once: true });
      if (this.#signal.aborted) onAbort();
      const where = addressText(listening.address);
      if (this.#json) printJson(this.#io.stdout, { event: 'listening', address: where }, false);
      else printLines(this.#io.stdout, [`listening at ${where}`]);
      return await this.#done;
    } finally {
      this.#signal.removeEventListener('abort', onAbort);
      const closed = listening.close();
      await Promise.all(this.#jobs);
      await closed;
    }
  }

  /** A connection came. */
  take(socket: net.Socket): void {
    if (this.#signal.aborted) {
      socket.destroy();
      return;
    }
    const job = this.#receive(socket).finally(() => this.#jobs.delete(job));
    this.#jobs.add(job);
  }

  async #receive(socket: net.Socket): Promise<void> {
    const mine = { accepted: false };
    let code: number;
    try {
      const result = await startReceive(this.#open.host, {
        from: socket,
        signal: this.#signal,
        accept: () => {
          if (this.#once && this.#taken)
            throw new UsageError('this receiver takes one guest, and it is on its way');
          this.#taken = mine.accepted = true;
        },
      }).result;
      code = await this.#report(result);
    } catch (error) {
      code = exitCodeOf(error, this.#signal);
      // Whoever connects and says nothing looks whether somebody is here; that is no failed migration.
      if (socket.bytesRead > 0) this.#complain(error, code);
    }
    // What never was a migration does not use up the one of `--once`.
    if (this.#once && mine.accepted) this.#finish?.(code);
  }

  #complain(error: unknown, exitCode: number): void {
    const text = errorLine(error);
    if (this.#json) printJson(this.#io.stdout, { event: 'failed', error: text, exitCode }, false);
    this.#io.stderr.write(`xen-migrate receive: ${text}\n`);
  }

  async #report(result: ReceiveResult): Promise<number> {
    const { domid, offer, state, bytes, pages, elapsed, sourceReleased } = result;
    const arrived = await arrivedGuest(this.#open, domid, result.guestType);
    const { kind } = arrived;
    const { proof, facts } = await this.#prove(result);
    const ok = proved(facts);
    const name = printable(arrived.name ?? offer.name ?? `domain ${domid}`);
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
    if (result.nameTaken !== undefined) {
      const taken = `another guest here is named ${printable(result.nameTaken)}`;
      this.#io.stderr.write(`xen-migrate receive: ${name}: ${taken}; use xl rename when it is gone\n`);
    }
    if (!sourceReleased) {
      this.#io.stderr.write(
        `xen-migrate receive: ${name}: the sender did not confirm that its copy is gone; if a suspended copy is left there, destroy it\n`,
      );
    }
    return ok ? ExitCode.OK : ExitCode.FAILED;
  }

  /** A guest of the simulator shows that it runs and is whole; of a real one the hypervisor's word is enough. */
  async #prove(result: ReceiveResult): Promise<{ proof?: Proof; facts: readonly Fact[] }> {
    if (this.#open.kind === 'xen') return { facts: [] };
    const idle = /workload=idle/.test(result.config ?? '');
    const moves = result.state === 'running' && !idle;
    const proof = await proveGuest(this.#open.host, result.domid, moves, this.#signal);
    return { proof, facts: proofFacts(proof, moves && proof.checkable) };
  }
}

export const receive: Command = {
  name: 'receive',
  summary: 'waits for guests that migrate sends, and runs them',
  help,
  run,
};
