/** `NODE_DEBUG=xen-migration`: the one debug log. Costs nothing when off. */
import { debuglog } from 'node:util';

export const debug = debuglog('xen-migration');
