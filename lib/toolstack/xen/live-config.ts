/**
 * The configuration of a running domain (libxl_retrieve_domain_configuration): the JSON that libxl keeps, with what may have
 * changed since it was written put right. Devices need no care: libxl changes the file with each attach, detach and eject.
 * Scheduling parameters stay as configured: asking for those of the moment is beyond the hypercalls used here.
 */
import { UsageError } from '../../errors.js';
import type { DeviceModels } from './device-model.js';
import type { ToolstackDomainInfo } from './hypercalls.js';
import { objectOf, parseJson, printJson, type JsonObject } from './json.js';
import { uuidText } from '../../bytes/uuid.js';
import { xsPath } from './paths.js';
import type { Parts } from './parts.js';
import { readConfig } from './user-data.js';

/** LIBXL_MAXMEM_CONSTANT: what libxl adds to the memory target of an HVM guest that is ballooned. */
const MAXMEM_CONSTANT_KIB = 1024;
const KIB_MAX = 2 ** 44;

/** Text as the xl header of a stream carries it, without NUL. Throws UsageError if libxl knows nothing of the domain. */
export async function liveConfig(
  parts: Parts,
  models: DeviceModels,
  info: ToolstackDomainInfo,
): Promise<string> {
  const { domid } = info;
  const uuid = uuidText(info.handle);
  const text = await readConfig(parts.folders, domid, uuid);
  if (text === undefined) {
    throw new UsageError(
      `libxl has no configuration of domain ${domid} (UUID ${uuid}) in ${parts.folders.lib}: give one, or save in format libxl or libxc`,
      { domid },
    );
  }
  const config = parseJson(text, `configuration that libxl keeps of domain ${domid}`);
  const create = (config['c_info'] = { ...objectOf(config['c_info']) });
  const build = (config['b_info'] = { ...objectOf(config['b_info']) });
  const store = await parts.store();

  const name = await store.read(xsPath.name(domid));
  if (name !== undefined && name !== '') create['name'] = name;
  create['uuid'] = uuid;
  // Only `xl save -D` asks for the same number again.
  delete create['domid'];

  const vcpus = await availableVcpus(parts, models, info, Number(build['max_vcpus'] ?? 1));
  if (vcpus !== undefined) build['avail_vcpus'] = vcpus;
  await setMemory(parts, domid, build, create['type'] === 'hvm');
  return printJson(config);
}

/** vcpus that are online: QEMU's for a guest with a device model, else what the guest is told in xenstore. */
async function availableVcpus(
  parts: Parts,
  models: DeviceModels,
  info: ToolstackDomainInfo,
  max: number,
): Promise<number[] | undefined> {
  const known = await models.vcpus(info);
  if (known !== undefined) return known.filter((vcpu) => vcpu < max);
  const store = await parts.store();
  const online: number[] = [];
  for (let vcpu = 0; vcpu < max && vcpu <= info.maxVcpuId; vcpu++) {
    const state = await store.read(`${xsPath.domain(info.domid)}/cpu/${vcpu}/availability`);
    if (state === 'online') online.push(vcpu);
  }
  return online.length > 0 ? online : undefined;
}

/** What the guest may have, and what it is asked to use, both changed by `xl mem-max` and `xl mem-set`. */
async function setMemory(parts: Parts, domid: number, build: JsonObject, hvm: boolean): Promise<void> {
  const store = await parts.store();
  const read = async (node: string): Promise<number | undefined> => {
    const text = await store.read(`${xsPath.domain(domid)}/memory/${node}`);
    const kib = Number(text ?? '');
    return Number.isInteger(kib) && kib > 0 && kib <= KIB_MAX ? kib : undefined;
  };
  const target = await read('target');
  const most = await read('static-max');
  // libxl takes the difference by the configuration as it was.
  const ballooned = hvm && Number(build['max_memkb'] ?? 0) > Number(build['target_memkb'] ?? 0);
  const video = typeof build['video_memkb'] === 'number' ? build['video_memkb'] : 0;
  if (target !== undefined) build['target_memkb'] = target + video + (ballooned ? MAXMEM_CONSTANT_KIB : 0);
  if (most !== undefined) build['max_memkb'] = most;
}
