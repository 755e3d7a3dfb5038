/*
 * Holds memory.c against the C library of the machine: lengths up to LENGTHS, at every offset of a word, with every
 * overlap that matters, and with the pages before and after the buffers unreadable. Prints what differs first; 0 when nothing.
 */
#define _GNU_SOURCE
#define NAME(name) ours_##name
#include "memory.c"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Every length up to DENSE, then every DENSE_STEP-th: beyond, the loops only turn more often. */
enum { DENSE = 300, DENSE_STEP = 61, LENGTHS = 2300, SPACE = 8192 };

static unsigned long checks;

/* Bytes between two pages that nobody may touch. */
static unsigned char *fenced(void)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	unsigned char *all = mmap(NULL, SPACE + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (all == MAP_FAILED || mprotect(all + page, SPACE, PROT_READ | PROT_WRITE) != 0) {
		perror("fenced");
		exit(2);
	}
	return all + page;
}

static uint64_t state = 1;

static unsigned char random_byte(void)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (unsigned char)(state >> 56);
}

static void fill(unsigned char *bytes)
{
	for (size_t at = 0; at < SPACE; at++)
		bytes[at] = random_byte();
}

static void fail(const char *what, size_t count, size_t to, size_t from)
{
	printf("%s differs: %zu bytes from offset %zu to offset %zu\n", what, count, from, to);
	exit(1);
}

static int sign(int order) { return (order > 0) - (order < 0); }

int main(void)
{
	static unsigned char expected[SPACE];
	unsigned char *a = fenced(), *b = fenced();

	for (size_t count = 0; count <= LENGTHS; count += count < DENSE ? 1 : DENSE_STEP) {
		for (size_t shift = 0; shift < 17; shift++) {
			/* Copies that end where the buffer ends, and copies that begin where it begins. */
			size_t places[2][2] = { { SPACE - count - shift, SPACE - count }, { shift, 0 } };
			for (size_t place = 0; place < 2; place++) {
				size_t to = places[place][0], from = places[place][1];
				fill(a);
				fill(b);
				memcpy(expected, b, SPACE);
				memcpy(expected + to, a + from, count);
				if (ours_memcpy(b + to, a + from, count) != b + to || memcmp(expected, b, SPACE) != 0)
					fail("memcpy", count, to, from);
				checks++;
			}
		}
		/* Overlaps: a little, by a piece, by almost everything; both ways, and none at all. */
		size_t apart[] = { 0, 1, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, count / 2, count, count + 1 };
		for (size_t i = 0; i < sizeof apart / sizeof *apart; i++) {
			for (size_t shift = 0; shift < 16; shift++) {
				size_t low = shift, high = shift + apart[i];
				for (int up = 0; up < 2; up++) {
					size_t to = up ? high : low, from = up ? low : high;
					fill(b);
					memcpy(expected, b, SPACE);
					memmove(expected + to, expected + from, count);
					if (ours_memmove(b + to, b + from, count) != b + to || memcmp(expected, b, SPACE) != 0)
						fail("memmove", count, to, from);
					checks++;
				}
			}
		}
		/* Comparisons: equal, and different in one byte, at the very end of what may be read. */
		for (size_t shift = 0; shift < 9; shift++) {
			unsigned char *l = a + SPACE - count - shift, *r = b + SPACE - count;
			fill(a);
			memcpy(r, l, count);
			if (ours_memcmp(l, r, count) != 0 || ours_bcmp(l, r, count) != 0)
				fail("memcmp", count, SPACE, SPACE);
			checks++;
			for (size_t at = 0; at < count; at++) {
				unsigned char kept = r[at];
				r[at] = (unsigned char)(kept + 1 + random_byte() % 255);
				/* What comes behind the first difference must not matter. */
				if (at + 1 < count)
					r[at + 1] ^= 0x80;
				if (sign(ours_memcmp(l, r, count)) != sign(memcmp(l, r, count)))
					fail("memcmp", count, at, shift);
				if (at + 1 < count)
					r[at + 1] ^= 0x80;
				r[at] = kept;
				checks++;
			}
		}
	}
	printf("%lu checks\n", checks);
	return checks > 900000 ? 0 : 3;
}
