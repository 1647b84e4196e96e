/** The subcommands, in the order in which help lists them. */
import type { Command } from './command.js';
import { demo } from './demo.js';
import { inspect } from './inspect.js';
import { migrate } from './migrate.js';
import { receive } from './receive.js';
import { restore } from './restore.js';
import { save } from './save.js';
import { verify } from './verify.js';

export const commands: readonly Command[] = [demo, verify, inspect, migrate, receive, save, restore];
