// run: full
// needs: other-build
// guest: --timeout 3600
import { testManyDevices } from './many-devices.js';

// More than a socket takes messages of 1 KiB.
testManyDevices(120, 1);
