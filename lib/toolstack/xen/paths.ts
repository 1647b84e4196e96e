/** Where libxl keeps things, in the file system and in xenstore. */

/** Folders of the Xen tools, fixed when they were built. */
export interface XenFolders {
  /** XEN_RUN_DIR: locks and QMP sockets. Default `/var/run/xen`. */
  readonly run: string;
  /** XEN_LIB_DIR: user data and device states. Default `/var/lib/xen`. */
  readonly lib: string;
}

export const XEN_FOLDERS: XenFolders = { run: '/var/run/xen', lib: '/var/lib/xen' };

/** Domid of the domain that the device models of this host live in. */
const TOOLSTACK_DOMID = 0;

export const xsPath = {
  domains: '/local/domain',
  domain: (domid: number): string => `/local/domain/${domid}`,
  name: (domid: number): string => `/local/domain/${domid}/name`,
  vm: (uuid: string): string => `/vm/${uuid}`,
  libxl: (domid: number): string => `/libxl/${domid}`,
  shutdown: (domid: number): string => `/local/domain/${domid}/control/shutdown`,
  suspendPort: (domid: number): string => `/local/domain/${domid}/device/suspend/event-channel`,
  deviceModel: (domid: number): string => `/local/domain/${TOOLSTACK_DOMID}/device-model/${domid}`,
  backend: (backend: number, kind: string, domid: number, device: string): string =>
    `/local/domain/${backend}/backend/${kind}/${domid}/${device}`,
} as const;

/** The device model's state while a domain is saved (LIBXL_DEVICE_MODEL_SAVE_FILE). */
export function saveFile(folders: XenFolders, domid: number): string {
  return `${folders.lib}/qemu-save.${domid}`;
}

/** The same while one is restored (LIBXL_DEVICE_MODEL_RESTORE_FILE). */
export function restoreFile(folders: XenFolders, domid: number): string {
  return `${folders.lib}/qemu-resume.${domid}`;
}

/** Sockets of QEMU's monitor: the one for libxl, and one for libxenstat. */
export function qmpSockets(folders: XenFolders, domid: number): readonly [string, string] {
  return [`${folders.run}/qmp-libxl-${domid}`, `${folders.run}/qmp-libxenstat-${domid}`];
}

/** libxc's lock of a guest's suspend event channel. */
export function suspendLock(folders: XenFolders, domid: number): string {
  return `${folders.run}/suspend-evtchn-${domid}.lock`;
}
