/** Which host a command works on: the machine's Xen, or a simulated one. */
import { AddonError, UsageError } from '../errors.js';
import type { Host } from '../host/host.js';
import type { SimulatedHost } from '../host/simulated/host.js';
import type { CommandIo } from './command.js';
import { openXenSide, type XenSide } from './xen-side.js';

/** The option that chooses the host. */
export const hostOption = { host: { type: 'string' } } as const;

/** An open host. `close` it. */
export type OpenHost =
  | { readonly kind: 'sim'; readonly host: SimulatedHost }
  | { readonly kind: 'xen'; readonly host: Host; readonly xen: XenSide };

/**
 * The host that `--host` names: `sim`, or by default Xen.
 *
 * @param simOnly Options that a real host has no use for: refused there
 * @param seed Of a simulated host: decides its machine frame numbers
 * @throws AddonError if Xen is wanted and cannot be had, UsageError
 */
export async function openHost(
  values: Readonly<Record<string, unknown>> & { readonly host?: string | undefined },
  simOnly: readonly string[],
  seed: number,
  io: CommandIo,
): Promise<OpenHost> {
  const choice = values.host;
  if (choice === 'sim') {
    // Many files, that a command on a real host starts faster without.
    const simulated = await import('../host/simulated/host.js');
    return { kind: 'sim', host: new simulated.SimulatedHost({ seed, warmGuests: true }) };
  }
  if (choice !== undefined && choice !== 'xen') {
    throw new UsageError(`--host: "${choice}" is none of xen, sim`);
  }
  const xen = await openXen(io);
  const superfluous = simOnly.find((name) => values[name] !== undefined);
  if (superfluous === undefined) return { kind: 'xen', host: xen.host, xen };
  await xen.host.close();
  throw new UsageError(`--${superfluous} is for simulated hosts and this is a Xen host; add --host sim`);
}

async function openXen(io: CommandIo): Promise<XenSide> {
  try {
    return await (io.openXen ?? openXenSide)();
  } catch (error) {
    if (!(error instanceof AddonError)) throw error;
    throw new AddonError(error.code, `${error.message}; add --host sim to use a simulated host`, {
      cause: error,
    });
  }
}
