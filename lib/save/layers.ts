/** What xl and libxl write around the libxc stream. */
import { UsageError } from '../errors.js';
import { encodeLibxlHeader } from '../stream/libxl/header.js';
import { LibxlRecord } from '../stream/libxl/constants.js';
import { decodeEmulatorXenstoreData, encodeEmulatorContext } from '../stream/libxl/records.js';
import { encodeXlHeader } from '../stream/xl/header.js';
import type { SaveContext } from './context.js';
import type { SaveFormat } from './types.js';

/** libxl numbers the device models of a domain; there is only one. */
const EMULATOR_INDEX = 0;

/** The xl header with the guest's configuration, ready to be written, or nothing for the other formats. */
export async function prepareXlHeader(context: SaveContext, format: SaveFormat): Promise<Uint8Array[]> {
  if (format !== 'xl') return [];
  const { control, toolstack, domid, options } = context;
  const config = options.config ?? (await toolstack.domainConfig(domid));
  control.throwIfCancelled();
  if (config.includes('\0')) throw new UsageError('the configuration holds a NUL character');
  return [encodeXlHeader({ config })];
}

/** libxl's header and the record after which the libxc stream follows, or nothing for a bare libxc stream. */
export async function writeLibxlHead({ out }: SaveContext, format: SaveFormat): Promise<void> {
  if (format === 'libxc') return;
  await out.write([encodeLibxlHeader()]);
  await out.record(LibxlRecord.LIBXC_CONTEXT);
}

/**
 * What follows the libxc stream: the state of the device model, if the guest has one, and libxl's END.
 *
 * The layout of both records is the same: emulator header, then the contents as the toolstack gives them.
 */
export async function writeLibxlTail(context: SaveContext, format: SaveFormat): Promise<void> {
  if (format === 'libxc') return;
  const { control, toolstack, domid, out } = context;
  const state = await toolstack.deviceModelState(domid);
  control.throwIfCancelled();
  if (state !== undefined) {
    const header = { emulatorId: state.emulator, index: EMULATOR_INDEX };
    if (state.xenstore.length > 0) {
      const body = encodeEmulatorContext({ ...header, blob: state.xenstore });
      // Strings that no receiver would take must fail here, where the guest can still go on.
      decodeEmulatorXenstoreData(body);
      await out.record(LibxlRecord.EMULATOR_XENSTORE_DATA, body);
    }
    await out.record(LibxlRecord.EMULATOR_CONTEXT, encodeEmulatorContext({ ...header, blob: state.context }));
  }
  await out.record(LibxlRecord.END);
}
