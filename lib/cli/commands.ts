/** The subcommands, in the order in which help lists them. */
import type { Command } from './command.js';

/** A subcommand before it is needed: loading all of them would take longer than some of them run. */
export interface CommandEntry extends Pick<Command, 'name' | 'summary'> {
  readonly load: () => Promise<Command>;
}

export const commands: readonly CommandEntry[] = [
  {
    name: 'demo',
    summary: 'live-migrates a running guest between two simulated hosts and shows it',
    load: async () => (await import('./demo.js')).demo,
  },
  {
    name: 'verify',
    summary: 'checks a saved guest or a captured migration',
    load: async () => (await import('./verify.js')).verify,
  },
  {
    name: 'inspect',
    summary: 'shows what is in a saved guest or a captured migration',
    load: async () => (await import('./inspect.js')).inspect,
  },
  {
    name: 'convert',
    summary: 'converts a legacy image of Xen 4.0 to 4.5, or of xend, for the Xen of today',
    load: async () => (await import('./convert.js')).convert,
  },
  {
    name: 'info',
    summary: 'tells what of Xen is here, and what can be done with it',
    load: async () => (await import('./info.js')).info,
  },
  {
    name: 'list',
    summary: 'lists the domains of this machine',
    load: async () => (await import('./list.js')).list,
  },
  {
    name: 'migrate',
    summary: 'live-migrates a guest to a receiver',
    load: async () => (await import('./migrate.js')).migrate,
  },
  {
    name: 'receive',
    summary: 'waits for guests that migrate sends, and runs them',
    load: async () => (await import('./receive.js')).receive,
  },
  {
    name: 'save',
    summary: 'saves a guest to a file in the form of xl save',
    load: async () => (await import('./save.js')).save,
  },
  {
    name: 'restore',
    summary: 'restores a guest from a file',
    load: async () => (await import('./restore.js')).restore,
  },
  {
    name: 'recover',
    summary: 'puts right what killed saves and migrations left behind',
    load: async () => (await import('./recover.js')).recover,
  },
];
