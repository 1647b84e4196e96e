#!/usr/bin/env node
/** The program `xen-migrate-save-helper`, which libxl starts in place of its own helper: LIBXL_SAVE_HELPER. */
import { runHelper } from './helper.js';
import { worldOfProcess } from './process.js';

const world = worldOfProcess(async (toolstack, log) => {
  const { XenHost } = await import('../host/xen/host.js');
  return new XenHost({ toolstack, log, inline: true });
});
void runHelper(world).then((code) => process.exit(code));
