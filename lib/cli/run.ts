/** Finds the subcommand, runs it, and turns what it throws into one line and an exit code. */
import { inspect } from 'node:util';
import { UsageError } from '../errors.js';
import { VERSION } from '../version.js';
import { ExitCode, type CommandIo } from './command.js';
import { commands, type CommandEntry } from './commands.js';
import { errorLine, exitCodeOf } from './exit.js';
import { tableLines } from './format.js';

/**
 * Runs `xen-migrate` with these arguments. Never rejects.
 *
 * @param argv Arguments after the program's name
 * @returns The exit code
 */
export async function runCommand(
  argv: readonly string[],
  io: CommandIo,
  signal: AbortSignal,
): Promise<number> {
  let name = 'xen-migrate';
  try {
    const [first, ...rest] = argv;
    if (first === undefined) {
      io.stderr.write(overview());
      return ExitCode.USAGE;
    }
    if (first === '--version' || first === '-V') {
      io.stdout.write(`xen-migrate ${VERSION}\n`);
      return ExitCode.OK;
    }
    if (first === '--help' || first === '-h') {
      io.stdout.write(overview());
      return ExitCode.OK;
    }
    if (first.startsWith('-')) throw new UsageError(`unknown option ${first}`);
    if (first === 'help') return await helpFor(rest, io);
    const entry = find(first);
    name = `xen-migrate ${entry.name}`;
    const command = await entry.load();
    if (wantsHelp(rest)) {
      io.stdout.write(command.help);
      return ExitCode.OK;
    }
    return await command.run(rest, io, signal);
  } catch (error) {
    const code = exitCodeOf(error, signal);
    const hint = code === ExitCode.USAGE ? `; see ${name} --help` : '';
    io.stderr.write(`${name}: ${errorLine(error)}${hint}\n`);
    if (/(^|,)xen-migration(,|$)/.test(io.env['NODE_DEBUG'] ?? '')) {
      io.stderr.write(`${inspect(error, { depth: 6 })}\n`);
    }
    return code;
  }
}

async function helpFor(names: readonly string[], io: CommandIo): Promise<number> {
  const [name, extra] = names;
  if (extra !== undefined) throw new UsageError(`"${extra}" is one argument too many`);
  io.stdout.write(name === undefined || name.startsWith('-') ? overview() : (await find(name).load()).help);
  return ExitCode.OK;
}

function find(name: string): CommandEntry {
  const command = commands.find((c) => c.name === name);
  if (command === undefined) throw new UsageError(`there is no command "${name}"`);
  return command;
}

function wantsHelp(argv: readonly string[]): boolean {
  const end = argv.indexOf('--');
  const options = end === -1 ? argv : argv.slice(0, end);
  return options.includes('--help') || options.includes('-h');
}

function overview(): string {
  const list = tableLines(
    commands.map(({ name, summary }) => [`  ${name}`, summary]),
    ['left', 'left'],
  );
  return `usage: xen-migrate COMMAND [options]

Saves, restores, live-migrates, verifies, inspects and converts Xen guests in the Migration v2 formats.

${list.join('\n')}

  xen-migrate COMMAND --help    what a command does, and its options
  xen-migrate --version         the version

NODE_DEBUG=xen-migration prints where an error came from, and what goes on.
`;
}
