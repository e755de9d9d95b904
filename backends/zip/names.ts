import { isUtf8 } from 'node:buffer';
import type { DirectoryEntry } from './directory.js';

/** Bit 11 of the flags: the name is UTF-8. */
const UTF8 = 0x800;

/** Bytes from 128 on in code page 437, in which names are that do not say otherwise. */
const CODE_PAGE_437 =
  'ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0';

/** Each name that an entry may be meant by, the likeliest first: many programs write UTF-8 and do not say so. */
export function namesOf({ rawName, flags, unicodeName }: DirectoryEntry): readonly string[] {
  const saysSo = (flags & UTF8) !== 0;
  return [
    ...(unicodeName === null ? [] : [unicodeName]),
    ...(saysSo || isUtf8(rawName) ? [rawName.toString('utf8')] : []),
    ...(saysSo ? [] : [fromCodePage437(rawName)]),
  ];
}

export const nameOf = (entry: DirectoryEntry): string => namesOf(entry)[0] ?? '';

/** Exactly, else but for a leading ./ and how letters with accents are composed; null: neither. */
export function likeness(entry: DirectoryEntry, wanted: string): 'same' | 'alike' | null {
  const names = namesOf(entry);
  if (names.includes(wanted)) return 'same';
  return names.some((name) => plain(name) === plain(wanted)) ? 'alike' : null;
}

function plain(name: string): string {
  return name.replace(/^(\.\/+)+/, '').normalize('NFC');
}

function fromCodePage437(bytes: Buffer): string {
  return Array.from(bytes, (byte) => (byte < 128 ? String.fromCharCode(byte) : (CODE_PAGE_437[byte - 128] ?? ''))).join(
    '',
  );
}
