/** An outer world for commands that are run in this process. */
import { Readable, Writable } from 'node:stream';
import type { CommandIo } from '../../../lib/cli/command.js';
import { runCommand } from '../../../lib/cli/run.js';

/** Keeps what is written to it. */
export class Collector extends Writable {
  readonly chunks: Buffer[] = [];
  readonly isTTY: boolean;
  readonly columns = 100;
  /** Called with all the text after each write. */
  onText: ((text: string) => void) | undefined;

  constructor(isTTY = false) {
    super();
    this.isTTY = isTTY;
  }

  get bytes(): Buffer {
    return Buffer.concat(this.chunks);
  }

  get text(): string {
    return this.bytes.toString();
  }

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.chunks.push(Buffer.from(chunk));
    this.onText?.(this.text);
    done();
  }
}

export interface TestIo extends CommandIo {
  readonly stdout: Collector;
  readonly stderr: Collector;
}

export function testIo(
  options: { tty?: boolean; env?: Record<string, string>; stdin?: Readable } & Pick<
    CommandIo,
    'openXen' | 'survey'
  > = {},
): TestIo {
  return {
    stdin: options.stdin ?? Readable.from([]),
    stdout: new Collector(options.tty),
    stderr: new Collector(options.tty),
    env: options.env ?? {},
    openXen: options.openXen,
    survey: options.survey,
  };
}

/** Runs the command as a shell would see it. */
export async function run(
  argv: readonly string[],
  io: TestIo = testIo(),
  signal: AbortSignal = new AbortController().signal,
): Promise<{ code: number; out: string; err: string }> {
  const code = await runCommand(argv, io, signal);
  return { code, out: io.stdout.text, err: io.stderr.text };
}
