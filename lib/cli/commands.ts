/** The subcommands, in the order in which help lists them. */
import type { Command } from './command.js';
import { demo } from './demo.js';

export const commands: readonly Command[] = [demo];
