/** `xen-migrate receive`: takes guests that `xen-migrate migrate` and `xl migrate` send. */
import { setMaxListeners } from 'node:events';
import net from 'node:net';
import type { Duplex } from 'node:stream';
import { printable } from '../bytes/printable.js';
import { debug } from '../debug.js';
import { UsageError, XenMigrationError } from '../errors.js';
import { startReceive } from '../migrate/migrate.js';
import { ONLY_ASKED } from '../migrate/receiver.js';
import type { ReceiveResult } from '../migrate/types.js';
import { countOf } from '../quantities.js';
import {
  listenForPeers,
  parsePeerAddress,
  requirePrivate,
  stdioPeer,
  type ListenOptions,
  type PeerAddress,
  type PeerListener,
  type PeerOrigin,
} from '../transport/peer/index.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { errorLine, exitCodeOf, Interrupted } from './exit.js';
import { bytesText, countText, paintFor, speaksUnicode, timeText } from './format.js';
import { arrivedGuest } from './guests.js';
import { hostOption, openHost, type OpenHost } from './hypervisor.js';
import { notifySystemd } from './notify.js';
import { operands } from './operands.js';
import { tlsFrom, tlsHelp, tlsOptions } from './peer.js';
import { indent, printJson, printLines } from './print.js';
import { proofFacts, proved, proveGuest, type Proof } from './proof.js';
import { factLines, type Fact } from './report.js';
import { choiceOf } from './values.js';

/** Connections that have not said yet which guest they bring. More are closed; each has its time to speak. */
const MOST_SILENT = 64;

const PROTOCOLS = ['xen-migration', 'xl'] as const;

const help = `usage: xen-migrate receive --listen ADDRESS [options]
       xen-migrate receive --stdio [options]

Waits for guests that xen-migrate migrate sends, builds them and runs them. Prints its address when it is ready.

  --listen ADDRESS      tcp://HOST:PORT, tls://HOST:PORT or unix:///PATH, also written HOST:PORT or /PATH; port 0
                        takes a free one. systemd, systemd:NAME: the sockets that systemd passes; fd://N: this one
  --stdio               one guest, over standard input and output: for ssh. All that is printed goes to standard error
  --protocol PROTOCOL   xen-migration: of this package's senders (default); xl: of a stock xl migrate
  --host HOST           xen: this machine (default); sim: a simulated host, where each guest checks its own memory
  --max N               guests that may be on their way at a time; more are refused (default: no limit)
  --once                end after the first guest, with its outcome as exit code

${tlsHelp}  --tls-allow NAMES     names of senders that may come, one of which their certificate must have: NAME[,NAME]
  --insecure            allow plain TCP beyond this machine: memory travels unencrypted, anybody may send
  --paused              leave guests paused here (xl migrate -p), whatever they were at their source
  --json                print one JSON document on a line for each event
  --help                print this text

A guest that does not arrive leaves nothing behind. Without --once it goes on until it is stopped by SIGINT or
SIGTERM: then it takes no more, stops what can still go on at its source, and ends when the others have arrived. Guests
of a simulated host end with it.
`;

async function run(argv: readonly string[], io: CommandIo, signal: AbortSignal): Promise<number> {
  const { values, positionals } = parseArguments(argv, {
    allowPositionals: true,
    options: {
      ...hostOption,
      ...tlsOptions,
      'tls-allow': { type: 'string', multiple: true },
      listen: { type: 'string' },
      stdio: { type: 'boolean' },
      protocol: { type: 'string' },
      max: { type: 'string' },
      once: { type: 'boolean' },
      paused: { type: 'boolean' },
      insecure: { type: 'boolean' },
      json: { type: 'boolean' },
    },
  });
  operands(positionals, []);
  const stdio = values.stdio === true;
  if (!stdio && values.listen === undefined) throw new UsageError('--listen ADDRESS is missing');
  if (stdio && values.listen !== undefined) throw new UsageError('give --listen or --stdio, not both');
  const address = parsePeerAddress(stdio ? 'stdio' : (values.listen ?? ''));
  requirePrivate(address, values.insecure);
  const allow = values['tls-allow']?.flatMap((names) => names.split(',').filter((name) => name !== ''));
  const settings: Settings = {
    protocol: choiceOf(values.protocol ?? 'xen-migration', '--protocol', PROTOCOLS),
    max: values.max === undefined ? Infinity : countOf(values.max, '--max', 1, 10_000),
    once: values.once === true,
    paused: values.paused === true,
    json: values.json === true,
  };
  const listen: ListenOptions = {
    tls: tlsFrom(values, { allow }, address),
    insecure: values.insecure === true,
    signal,
    onError: (error) => io.stderr.write(`xen-migrate receive: ${errorLine(error)}\n`),
  };
  // Standard output is the sender's.
  const own = address.kind === 'stdio' ? { ...io, stdout: io.stderr } : io;
  const open = await openHost(values, [], 2, io);
  try {
    const service = new Service(own, open, settings, signal);
    return await service.run(() =>
      listenTo(address, listen, io, (peer, origin) => service.take(peer, origin)),
    );
  } finally {
    await open.host.close();
  }
}

/** As `listenForPeers`, but that standard input and output are the command's. */
async function listenTo(
  address: PeerAddress,
  options: ListenOptions,
  io: CommandIo,
  take: (peer: Duplex, origin: PeerOrigin) => void,
): Promise<PeerListener> {
  if (address.kind !== 'stdio') return listenForPeers(address, options, take);
  if (options.tls !== undefined) throw new UsageError('--stdio goes without TLS');
  take(stdioPeer(io.stdin, io.stdout), { from: 'stdio', certificateName: undefined });
  return { addresses: ['stdio'], given: true, close: async () => undefined };
}

interface Settings {
  readonly protocol: (typeof PROTOCOLS)[number];
  readonly max: number;
  readonly once: boolean;
  readonly paused: boolean;
  readonly json: boolean;
}

/** Receives one guest after the other, or several at once. */
class Service {
  readonly #io: CommandIo;
  readonly #open: OpenHost;
  readonly #settings: Settings;
  readonly #signal: AbortSignal;
  readonly #jobs = new Set<Promise<void>>();
  readonly #done: Promise<number>;
  #finish: ((code: number) => void) | undefined;
  /** Connections that have not said yet what they bring. */
  #silent = 0;
  /** Guests on their way. */
  #coming = 0;
  /** With `--once`: the one guest is coming. */
  #taken = false;
  /** The highest exit code of those that came. */
  #worst: number | undefined;

  constructor(io: CommandIo, open: OpenHost, settings: Settings, signal: AbortSignal) {
    this.#io = io;
    this.#open = open;
    this.#settings = settings;
    this.#signal = signal;
    this.#done = new Promise((resolve) => (this.#finish = resolve));
    // Each guest on its way listens to it.
    setMaxListeners(0, signal);
  }

  /** Until the signal, or the one guest, ends it. Resolves to the exit code. */
  async run(listen: () => Promise<PeerListener>): Promise<number> {
    let listener: PeerListener | undefined;
    const onAbort = (): void => {
      void listener?.close();
      void notifySystemd(this.#io, 'STOPPING=1');
      // The one guest that is on its way may have passed its commit point: then it decides.
      if (this.#settings.once && this.#taken) return;
      // Stopping a service is its normal end; stopping `--once` before its guest came is not.
      const reason: unknown = this.#signal.reason;
      this.#finish?.(this.#settings.once && reason instanceof Interrupted ? reason.exitCode : ExitCode.OK);
    };
    try {
      listener = await listen();
      // What came with the process is all that comes, and is here by now, unless it was not let in.
      if (listener.given) {
        await Promise.all(this.#jobs);
        return this.#worst ?? ExitCode.PEER;
      }
      this.#signal.addEventListener('abort', onAbort, { once: true });
      if (this.#signal.aborted) onAbort();
      this.#announce(listener.addresses);
      await notifySystemd(this.#io, 'READY=1');
      return await this.#done;
    } finally {
      this.#signal.removeEventListener('abort', onAbort);
      await listener?.close();
      await Promise.all(this.#jobs);
    }
  }

  /** A connection came. */
  take(peer: Duplex, origin: PeerOrigin): void {
    if (this.#signal.aborted || this.#silent >= MOST_SILENT) {
      debug('a connection is closed: %d others are silent', this.#silent);
      peer.on('error', () => undefined);
      peer.destroy();
      return;
    }
    const job = this.#receive(peer, origin).finally(() => this.#jobs.delete(job));
    this.#jobs.add(job);
  }

  #announce(addresses: readonly string[]): void {
    for (const address of addresses) {
      if (this.#settings.json) printJson(this.#io.stdout, { event: 'listening', address }, false);
      else printLines(this.#io.stdout, [`listening at ${address}`]);
    }
  }

  async #receive(peer: Duplex, origin: PeerOrigin): Promise<void> {
    const mine = { accepted: false };
    let code: number;
    this.#silent++;
    try {
      const result = await startReceive(this.#open.host, {
        from: peer,
        protocol: this.#settings.protocol,
        paused: this.#settings.paused,
        signal: this.#signal,
        accept: () => {
          this.#admit();
          mine.accepted = true;
          this.#silent--;
          this.#coming++;
        },
      }).result;
      code = await this.#report(result, origin);
    } catch (error) {
      code = exitCodeOf(error, this.#signal);
      if (!onlyLooked(peer, error)) this.#complain(error, code, origin);
    } finally {
      if (mine.accepted) this.#coming--;
      else this.#silent--;
    }
    this.#worst = Math.max(this.#worst ?? code, code);
    // What never was a migration does not use up the one of `--once`.
    if (this.#settings.once && mine.accepted) this.#finish?.(code);
  }

  /** Throws what a sender is told that cannot be taken now. */
  #admit(): void {
    const { once, max } = this.#settings;
    if (once && this.#taken) throw notNow('this receiver takes one guest, and it is on its way');
    if (this.#coming >= max) {
      throw notNow(
        `this receiver takes ${max === 1 ? 'one guest' : `${max} guests`} at a time; try again later`,
      );
    }
    this.#taken = true;
  }

  #complain(error: unknown, exitCode: number, origin: PeerOrigin): void {
    const text = errorLine(error);
    if (this.#settings.json)
      printJson(this.#io.stdout, { event: 'failed', error: text, exitCode, ...origin }, false);
    this.#io.stderr.write(`xen-migrate receive: ${text}\n`);
  }

  async #report(result: ReceiveResult, origin: PeerOrigin): Promise<number> {
    const { domid, offer, state, bytes, pages, elapsed, sourceReleased, nameTaken } = result;
    const arrived = await arrivedGuest(this.#open, domid, result.guestType);
    const { kind } = arrived;
    const { proof, facts } = await this.#prove(result);
    const ok = proved(facts);
    const name = printable(arrived.name ?? offer.name ?? `domain ${domid}`);
    if (this.#settings.json) {
      const { id } = result;
      printJson(
        this.#io.stdout,
        {
          event: 'received',
          ok,
          id,
          name,
          domid,
          kind,
          state,
          bytes,
          pages,
          elapsed,
          sourceReleased,
          proof,
          ...origin,
        },
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
    if (nameTaken !== undefined) {
      const taken = `another guest here is named ${printable(nameTaken)}`;
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
    // It is here: being told to stop changes nothing of that any more.
    const proof = await proveGuest(this.#open.host, result.domid, moves);
    return { proof, facts: proofFacts(proof, moves && proof.checkable) };
  }
}

function notNow(message: string): XenMigrationError {
  return new XenMigrationError('ERR_XEN_NOT_ACCEPTED', message);
}

/** Whoever connects and says nothing looks whether somebody is here, or asks about another migration; neither has failed. */
function onlyLooked(peer: Duplex, error: unknown): boolean {
  if (peer instanceof net.Socket && peer.bytesRead === 0) return true;
  return XenMigrationError.is(error) && error.code === ONLY_ASKED;
}

export const receive: Command = {
  name: 'receive',
  summary: 'waits for guests that migrate sends, and runs them',
  help,
  run,
};
