export { DirectFile } from '../../src/backend/conformance/direct-file.js';
