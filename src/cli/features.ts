import { ublkFeatures } from '../native/addon/system.js';
import { featuresWith, hasFeature, type UblkFeature } from '../supervisor/host/ublk-features.js';
import type { Register } from './common-options.js';
import { print, printJson } from './output.js';
import { formatTable, tableObjects, type Column } from './table.js';

export const featuresCommand: Register = (program) => {
  program
    .command('features')
    .description("show what this kernel's ublk offers; needs root")
    .option('-J, --json', 'one JSON document')
    .action(({ json }: { readonly json?: true }) => {
      const offered = ublkFeatures();
      const features = featuresWith(offered);
      const columns: readonly Column<UblkFeature>[] = [
        { name: 'FEATURE', description: 'UBLK_F_ flag', value: ({ name }) => name },
        {
          name: 'OFFERED',
          description: 'by this kernel',
          value: (feature) => hasFeature(offered, feature),
          text: (feature) => (hasFeature(offered, feature) ? 'yes' : 'no'),
        },
        { name: 'SINCE', description: 'first kernel that has it', value: ({ since }) => since, right: true },
        { name: 'DESCRIPTION', description: 'what it is for', value: ({ description }) => description },
      ];
      if (json) {
        printJson({ bits: `0x${offered.toString(16)}`, features: tableObjects(columns, features) });
        return;
      }
      const style = { headings: true, raw: false, exact: false };
      for (const line of formatTable(columns, features, style)) print(line);
    });
};
