// run: full
// needs: other-build
// guest: --memory 8G --timeout 3600
import { testManyDevices } from './many-devices.js';

testManyDevices(500, 2);
