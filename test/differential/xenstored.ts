/** Debian's xenstored and its xenstore-* tools, run without Xen: xenstored-shim.c stands where the hypervisor would. */
import { execFile, execFileSync, spawn, type ChildProcess } from 'node:child_process';
import * as fs from 'node:fs';
import { tmpdir } from 'node:os';
import * as path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

/** Bytes of the shim's `domains`. */
const DomainState = { none: 0, running: 1, shutdown: 2, dying: 3 } as const;
const VIRQ_PORT = 1;

/** Path of the daemon, of whatever Xen release is installed. */
export const daemon = fs
  .readdirSync('/usr/lib')
  .filter((name) => /^xen-\d/.test(name))
  .map((name) => `/usr/lib/${name}/bin/xenstored`)
  .find((file) => fs.existsSync(file));

/** Whether the comparison can be made here: daemon, tools and a compiler with Xen's headers. */
export const present =
  daemon !== undefined &&
  ['/usr/bin/xenstore-ls', '/usr/include/xenctrl.h'].every((file) => fs.existsSync(file)) &&
  (process.env['PATH'] ?? '').split(':').some((folder) => fs.existsSync(path.join(folder, 'gcc')));

/** One daemon in a folder of its own. */
export class Xenstored {
  /** The socket. */
  readonly path: string;
  readonly #dir: string;
  readonly #child: ChildProcess;
  #output = '';

  private constructor(dir: string) {
    this.#dir = dir;
    this.path = path.join(dir, 'socket');
    this.#child = spawn(daemon as string, ['--no-fork', '--internal-db=on'], {
      env: {
        ...process.env,
        XENSTORED_SHIM: dir,
        XENSTORED_RUNDIR: dir,
        LD_PRELOAD: path.join(dir, 'shim.so'),
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => (this.#output += text));
    }
  }

  static async start(): Promise<Xenstored> {
    const dir = fs.mkdtempSync(path.join(tmpdir(), 'xenstored-'));
    const shim = path.join(import.meta.dirname, 'xenstored-shim.c');
    execFileSync('gcc', ['-O1', '-shared', '-fPIC', '-o', path.join(dir, 'shim.so'), shim, '-ldl']);
    const domains = new Uint8Array(65_536);
    domains[0] = DomainState.running;
    fs.writeFileSync(path.join(dir, 'domains'), domains);
    fs.writeFileSync(path.join(dir, 'xsd_port'), '1\n');
    fs.writeFileSync(path.join(dir, 'xsd_kva'), new Uint8Array(4096));
    execFileSync('mkfifo', [path.join(dir, 'events')]);
    const xenstored = new Xenstored(dir);
    while (!fs.existsSync(xenstored.path)) {
      if (xenstored.#child.exitCode !== null) throw new Error(`xenstored ended: ${xenstored.#output}`);
      await delay(10);
    }
    return xenstored;
  }

  /** Runs one of Debian's tools on this daemon: `xenstore-read`, … Resolves to its output; rejects if it fails. */
  tool(name: string, ...args: string[]): Promise<string> {
    return new Promise((resolve, reject) => {
      const env = { ...process.env, XENSTORED_PATH: this.path };
      execFile(name, args, { env, maxBuffer: 1 << 26 }, (error, stdout, stderr) => {
        if (error === null) resolve(stdout);
        else reject(new Error(`${name}: ${stderr.trim()}`));
      });
    });
  }

  /** What the hypervisor says of a domain from now on; `event` tells the daemon to look. */
  setDomain(domid: number, state: keyof typeof DomainState): void {
    const fd = fs.openSync(path.join(this.#dir, 'domains'), 'r+');
    fs.writeSync(fd, new Uint8Array([DomainState[state]]), 0, 1, domid);
    fs.closeSync(fd);
  }

  /** VIRQ_DOM_EXC: some domain changed its state. */
  event(): void {
    fs.appendFileSync(path.join(this.#dir, 'events'), new Uint8Array([VIRQ_PORT, 0, 0, 0]));
  }

  /** Ends it, as a crash would. */
  async stop(): Promise<void> {
    const { exitCode, signalCode } = this.#child;
    if (exitCode === null && signalCode === null) {
      const ended = new Promise((resolve) => this.#child.once('exit', resolve));
      this.#child.kill('SIGKILL');
      await ended;
    }
    fs.rmSync(this.#dir, { recursive: true, force: true });
  }
}
