// run: full
// guest: --memory 8G
import { testManyDevices } from './many-devices.js';

testManyDevices(500, 2);
