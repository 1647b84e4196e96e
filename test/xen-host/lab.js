#!/usr/bin/env node
/** Xen hosts for work by hand: see `usage`. */
import { say } from '../../scripts/steps.js';
import { images } from './image/images.js';
import { consoleOf, execute, folderOf, ready, running, start, stop } from './machine/machine.js';
import { startPair } from './machine/pair.js';

const usage = `node test/xen-host/lab.js COMMAND

  start NAME [--pair NAME] [--xen stock|shadow] [--mem MiB] [--dom0-mem MiB] [--cpus N] [--xen-options TEXT]
               boots a machine and waits until dom0 takes commands; builds images that are missing
               --pair: boots a second one with that name, joined to the first by a network: 10.17.0.1 and 10.17.0.2
  exec NAME 'shell command'
               runs it in dom0 with its output here and its exit code; standard input is passed on if it is no terminal
  log NAME     what Xen and dom0 wrote on the console
  list         machines that run
  stop NAME    ends it; nothing in it is kept but its share folder

In dom0: the project, read-only, live: /project. Shared both ways: /share, which here is the folder that "start" prints.
Two joined hosts: "/xen-host/cable cut" and "… restore" in one of them; both have the /share of the first.
Guests: xl create /xen-host/guest/{pv,pvh,hvm,tiny}.cfg; their consoles: /var/log/xen/console/guest-NAME.log.
`;

/**
 * @param {string[]} args
 * @returns {Promise<number>}
 */
async function main(args) {
  const [command, name, ...rest] = args;
  if (command === 'list') {
    for (const machine of running()) console.log(`${machine}\t${folderOf(machine)}`);
    return 0;
  }
  if (name === undefined || command === undefined || args.includes('--help')) {
    process.stdout.write(usage);
    return command === undefined || !args.includes('--help') ? 2 : 0;
  }
  switch (command) {
    case 'start': {
      const options = parse(rest);
      const hypervisor = options.get('--xen') === 'shadow' ? 'shadow' : 'stock';
      const started = Date.now();
      const number = (/** @type {string} */ option, /** @type {number} */ otherwise) =>
        Number(options.get(option) ?? otherwise);
      const pair = options.get('--pair');
      const settings = {
        memory: number('--mem', 2048),
        dom0Memory: number('--dom0-mem', 640),
        processors: number('--cpus', 1),
        xenOptions: options.get('--xen-options') ?? '',
      };
      if (pair === undefined) await start(name, await images(hypervisor), settings);
      else await startPair([name, pair], await images(hypervisor), settings);
      const names = pair === undefined ? [name] : [name, pair];
      await Promise.all(names.map((host) => ready(host)));
      say(
        `   ${names.join(' and ')} ${pair === undefined ? 'runs' : 'run'} after ${((Date.now() - started) / 1000).toFixed(0)} s; /share is ${folderOf(name)}/share`,
      );
      return 0;
    }
    case 'exec': {
      const abort = new AbortController();
      process.on('SIGINT', () => abort.abort()).on('SIGTERM', () => abort.abort());
      const code = await execute(name, rest.join(' '), {
        ...(process.stdin.isTTY ? {} : { stdin: process.stdin }),
        stdout: (data) => void process.stdout.write(data),
        stderr: (data) => void process.stderr.write(data),
        signal: abort.signal,
      });
      process.stdin.destroy();
      return code;
    }
    case 'log':
      process.stdout.write(consoleOf(name));
      return 0;
    case 'stop':
      await stop(name);
      return 0;
    default:
      process.stderr.write(usage);
      return 2;
  }
}

/** @param {string[]} args pairs of option and value */
function parse(args) {
  const known = ['--pair', '--xen', '--mem', '--dom0-mem', '--cpus', '--xen-options'];
  /** @type {Map<string, string>} */
  const options = new Map();
  for (let at = 0; at < args.length; at += 2) {
    const [option = '', value] = args.slice(at, at + 2);
    if (!known.includes(option) || value === undefined)
      throw new Error(`${option}: no such option, or no value`);
    options.set(option, value);
  }
  return options;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  say(`lab: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
