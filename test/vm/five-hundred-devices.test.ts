// run: full
// needs: other-build
// guest: --memory 8G --timeout 7200
import { testManyDevices } from './many-devices.js';

testManyDevices(500, 2);
