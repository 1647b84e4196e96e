/** The PV part of a simulated domain. */
import { Errno } from '../../abi/errno.js';
import type { CreatePvDomain } from './pv-types.js';
import { refusal } from './refuse.js';

export const createPvDomain: CreatePvDomain = (core) => {
  throw refusal('XEN_DOMCTL_createdomain', Errno.EOPNOTSUPP, 'this host has no PV guests yet', core.domid);
};
