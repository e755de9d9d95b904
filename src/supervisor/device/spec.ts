import { blockSizeOfNew } from '../../../backends/disk-image.js';
import type { BackendFacts, BackendModule, Choice, LeftBackend } from '../../../backends/interface.js';
import type { DeviceConfig } from '../../config/types.js';
import { SupervisorError } from '../../errors.js';
import type { Served } from './hand-over.js';
import type { DeviceSpec, FoundDevice, Kernel } from '../ublk/kernel.js';

export type Announced = NonNullable<LeftBackend['announced']>;

/** null: a backend that serves at most `maxQueues` serves those of the device. */
export function tooManyQueues({ queues }: Pick<DeviceConfig, 'queues'>, maxQueues = queues): string | null {
  return queues <= maxQueues ? null : `its backend serves ${maxQueues} queues at most, not ${queues}; change queues`;
}

function asConfigured({ name, id, queues, depth, requestTimeoutMs, user, coreDump, recovery }: DeviceConfig) {
  return { name, id, queues, depth, requestTimeoutMs, user, coreDump, recovery: recovery.mode };
}

/** What a configured device and its open backend come to. Throws `CONFIG` where the two do not fit. */
export function deviceSpec(
  { config, backend, nursery }: Served,
  kernel: Pick<Kernel, 'offers' | 'nursery'>,
): DeviceSpec {
  const refuse = (reason: string): SupervisorError =>
    new SupervisorError(`configuring device ${config.name} failed: ${reason}`, { code: 'CONFIG', device: config.name });
  if (config.recovery.mode === 'reissue' && !backend.facts.idempotentWrites) {
    throw refuse(
      `backend ${config.backend.type} cannot take a write twice, which recovery mode reissue may do; use fail-inflight`,
    );
  }
  const tooMany = tooManyQueues(config, backend.maxQueues);
  if (tooMany !== null) throw refuse(tooMany);
  const choices = [...(backend.choices ?? [])];
  let blockSize = backend.blockSize ?? config.blockSize;
  if (blockSize === undefined) {
    const { bytes, why } = blockSizeOfNew(backend.size);
    choices.push({ what: 'blockSize', value: bytes, why });
    blockSize = bytes;
  }
  if (backend.size === 0 || backend.size % blockSize !== 0) {
    throw refuse(
      `the backend's size of ${backend.size} bytes is not a multiple of the block size of ` +
        `${blockSize}; change one of them`,
    );
  }
  const possible = config.faults === undefined ? backend.dataPaths : (['copy'] as const);
  const dataPath = config.dataPath === 'auto' ? possible.find((path) => kernel.offers(path)) : config.dataPath;
  if (dataPath === undefined || !backend.dataPaths.includes(dataPath)) {
    throw refuse(
      `backend ${config.backend.type} has no data path ${config.dataPath}; use ${backend.dataPaths.join(' or ')}`,
    );
  }
  if (config.dataPath === 'auto') {
    const best = dataPath === backend.dataPaths[0];
    const why =
      config.faults !== undefined
        ? 'fault rules change the data there'
        : `${best ? 'the best' : 'all that this kernel has'} for backend ${config.backend.type}`;
    choices.push({ what: 'dataPath', value: dataPath, why });
  }
  return {
    ...asConfigured(config),
    blockSize,
    size: backend.size,
    dataPath,
    choices,
    nursery: kernel.nursery(nursery),
    facts: { ...backend.facts, readOnly: backend.facts.readOnly || config.readOnly },
    backend: {
      name: backend.module?.path ?? config.backend.type,
      files: backend.files,
      module: backend.module ?? null,
    },
  };
}

/** The spec of a device that an earlier supervisor made: it keeps what the device's users were told. */
export function specOfFound(
  served: Served,
  kernel: Pick<Kernel, 'offers' | 'nursery'>,
  found: FoundDevice,
): DeviceSpec {
  const { config } = served;
  const made = { blockSize: found.blockSize ?? config.blockSize, dataPath: found.dataPath };
  const spec = deviceSpec({ ...served, config: { ...config, ...made } }, kernel);
  const why = 'the device was made with it';
  const choices: Choice[] = [
    ...(config.blockSize === undefined ? [{ what: 'blockSize', value: spec.blockSize, why } as const] : []),
    ...(config.dataPath === 'auto' ? [{ what: 'dataPath', value: spec.dataPath, why } as const] : []),
  ];
  return { ...spec, choices };
}

interface Unopened {
  readonly found: FoundDevice | null;
  readonly announced: Announced | null;
  readonly nursery: number;
}

/** What is known of a device whose backend is not open yet. Nothing is forked from it. */
export function unopenedSpec(config: DeviceConfig, { found, announced, nursery }: Unopened): DeviceSpec {
  const { backend } = config;
  const configured = 'size' in backend && typeof backend.size === 'number' ? backend.size : 0;
  return {
    ...asConfigured(config),
    blockSize: found?.blockSize ?? announced?.blockSize ?? config.blockSize ?? blockSizeOfNew(0).bytes,
    size: found?.size ?? announced?.size ?? configured,
    dataPath: found?.dataPath ?? (config.dataPath === 'auto' ? 'copy' : config.dataPath),
    choices: [],
    nursery,
    facts: announced?.facts ?? NO_FACTS,
    backend: {
      name: backend.type === 'module' ? backend.path : backend.type,
      files: [],
      module: backend.type === 'module' ? moduleOf(backend) : null,
    },
  };
}

function moduleOf({ path, options, directory }: Omit<BackendModule, 'lower'>): BackendModule {
  return { path, options, directory, lower: [] };
}

const NO_FACTS: BackendFacts = {
  volatileCache: false,
  fua: false,
  discard: false,
  writeZeroes: false,
  readOnly: false,
  rotational: false,
  idempotentWrites: false,
};
