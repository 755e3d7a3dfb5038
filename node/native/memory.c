/*
 * memcpy, memmove and memcmp of the static release on x86-64.
 *
 * Those of musl are small and slow there: its copies are `rep movsq`, which takes tens of cycles before the first byte
 * moves, and its memcmp goes byte by byte. A proxy copies and compares many short pieces (docs/design/0018-memory-functions.md
 * has the measurements). The archive of musl gives way to these, for the linker asks it only for what is still missing.
 *
 * Short lengths are done by two pieces that may overlap, all read before any is written, so that they need no loop and
 * memmove may share them. SSE2 only, which every x86-64 has.
 */
#include <emmintrin.h>
#include <stddef.h>
#include <stdint.h>

/* From this length on `rep movsq` is the faster of the two loops. */
enum { STRING_COPY_MIN = 2048 };

#ifndef NAME
#define NAME(name) name
#endif

typedef uint64_t __attribute__((may_alias, aligned(1))) word8;
typedef uint32_t __attribute__((may_alias, aligned(1))) word4;
typedef uint16_t __attribute__((may_alias, aligned(1))) word2;

static inline __m128i load(const unsigned char *from) { return _mm_loadu_si128((const __m128i *)from); }
static inline void store(unsigned char *to, __m128i piece) { _mm_storeu_si128((__m128i *)to, piece); }

void *NAME(memmove)(void *to, const void *from, size_t count)
{
	unsigned char *d = to;
	const unsigned char *s = from;

	if (count <= 16) {
		if (count >= 8) {
			uint64_t first = *(const word8 *)s, last = *(const word8 *)(s + count - 8);
			*(word8 *)d = first;
			*(word8 *)(d + count - 8) = last;
		} else if (count >= 4) {
			uint32_t first = *(const word4 *)s, last = *(const word4 *)(s + count - 4);
			*(word4 *)d = first;
			*(word4 *)(d + count - 4) = last;
		} else if (count >= 2) {
			uint16_t first = *(const word2 *)s, last = *(const word2 *)(s + count - 2);
			*(word2 *)d = first;
			*(word2 *)(d + count - 2) = last;
		} else if (count == 1) {
			*d = *s;
		}
		return to;
	}
	if (count <= 32) {
		__m128i first = load(s), last = load(s + count - 16);
		store(d, first);
		store(d + count - 16, last);
		return to;
	}
	if (count <= 64) {
		__m128i a = load(s), b = load(s + 16), y = load(s + count - 32), z = load(s + count - 16);
		store(d, a);
		store(d + 16, b);
		store(d + count - 32, y);
		store(d + count - 16, z);
		return to;
	}
	if (count <= 128) {
		__m128i a = load(s), b = load(s + 16), c = load(s + 32), e = load(s + 48);
		__m128i w = load(s + count - 64), x = load(s + count - 48), y = load(s + count - 32), z = load(s + count - 16);
		store(d, a);
		store(d + 16, b);
		store(d + 32, c);
		store(d + 48, e);
		store(d + count - 64, w);
		store(d + count - 48, x);
		store(d + count - 32, y);
		store(d + count - 16, z);
		return to;
	}

	/* The unaligned ends are read first and written last, when the aligned middle is done. */
	__m128i head = load(s);
	__m128i w = load(s + count - 64), x = load(s + count - 48), y = load(s + count - 32), z = load(s + count - 16);
	unsigned char *end = d + count;
	if ((uintptr_t)d - (uintptr_t)s >= count) {
		/* The destination is before the source or clear of it: upwards. */
		size_t skip = 16 - ((uintptr_t)d & 15);
		unsigned char *at = d + skip;
		const unsigned char *of = s + skip;
		if (count >= STRING_COPY_MIN) {
			/* The processor's own loop, once its start does not matter any more. */
			size_t words = (size_t)(end - at) / 8;
			__asm__ volatile("rep movsq" : "+D"(at), "+S"(of), "+c"(words) : : "memory");
		}
		for (; at < end - 64; at += 64, of += 64) {
			__m128i p = load(of), q = load(of + 16), r = load(of + 32), t = load(of + 48);
			_mm_store_si128((__m128i *)at, p);
			_mm_store_si128((__m128i *)(at + 16), q);
			_mm_store_si128((__m128i *)(at + 32), r);
			_mm_store_si128((__m128i *)(at + 48), t);
		}
		store(end - 64, w);
		store(end - 48, x);
		store(end - 32, y);
		store(end - 16, z);
		store(d, head);
	} else {
		/* Downwards; the last 64 bytes of the head are read before anything is written over them. */
		__m128i b = load(s + 16), c = load(s + 32), e = load(s + 48);
		size_t skip = (uintptr_t)end & 15;
		unsigned char *at = end - skip;
		const unsigned char *of = s + count - skip;
		for (; at > d + 64; at -= 64, of -= 64) {
			__m128i p = load(of - 16), q = load(of - 32), r = load(of - 48), t = load(of - 64);
			_mm_store_si128((__m128i *)(at - 16), p);
			_mm_store_si128((__m128i *)(at - 32), q);
			_mm_store_si128((__m128i *)(at - 48), r);
			_mm_store_si128((__m128i *)(at - 64), t);
		}
		store(d, head);
		store(d + 16, b);
		store(d + 32, c);
		store(d + 48, e);
		store(end - 16, z);
	}
	return to;
}

void *NAME(memcpy)(void *to, const void *from, size_t count) { return NAME(memmove)(to, from, count); }

/* Which of two differing pieces is less, byte by byte from the lowest address. */
static inline int order8(uint64_t a, uint64_t b) { return __builtin_bswap64(a) < __builtin_bswap64(b) ? -1 : 1; }

int NAME(memcmp)(const void *left, const void *right, size_t count)
{
	const unsigned char *l = left, *r = right;

	if (count >= 16) {
		size_t at = 0;
		for (;;) {
			unsigned same = (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(load(l + at), load(r + at)));
			if (same != 0xffff) {
				at += (size_t)__builtin_ctz(~same);
				return l[at] - r[at];
			}
			if (at == count - 16)
				return 0;
			at = at + 16 < count - 16 ? at + 16 : count - 16;
		}
	}
	if (count >= 8) {
		uint64_t a = *(const word8 *)l, b = *(const word8 *)r;
		if (a == b) {
			a = *(const word8 *)(l + count - 8);
			b = *(const word8 *)(r + count - 8);
		}
		return a == b ? 0 : order8(a, b);
	}
	if (count >= 4) {
		uint32_t a = *(const word4 *)l, b = *(const word4 *)r;
		if (a == b) {
			a = *(const word4 *)(l + count - 4);
			b = *(const word4 *)(r + count - 4);
		}
		return a == b ? 0 : order8((uint64_t)a << 32, (uint64_t)b << 32);
	}
	for (size_t at = 0; at < count; at++)
		if (l[at] != r[at])
			return l[at] - r[at];
	return 0;
}

int NAME(bcmp)(const void *left, const void *right, size_t count) { return NAME(memcmp)(left, right, count); }
