/* Small numbers as a Zstandard frame (RFC 8878): one block, Huffman codes, no sequences. The library would write the same after a search
   for strings, which finds none that are worth it; any Zstandard decoder reads it. */
#include <stdint.h>
#include <string.h>

#define MOST_BITS 11         /* of a code, by the format */
#define MOST_SYMBOLS 129     /* in a table in plain form: 128 lengths, and one that follows from them */
#define MOST_BYTES (1 << 17) /* in a block */
#define LEAST_BYTES 64       /* for less the table costs more than it gains */
#define STREAMS 4

typedef struct {
    uint16_t bits, length;
} code;

/* Return the longest depth of Huffman's tree over `leaves` counts in ascending order, their depths in `depth`. */
static int depths_of(const uint32_t *counts, int leaves, int *depth) {
    uint32_t total[2 * MOST_SYMBOLS];
    int parent[2 * MOST_SYMBOLS], root = 2 * leaves - 2, leaf = 0, inner = leaves;
    for (int i = 0; i < leaves; i++) total[i] = counts[i];
    for (int made = leaves; made <= root; made++) { /* leaves and inner nodes are two queues, each in ascending order */
        total[made] = 0;
        for (int child = 0; child < 2; child++) {
            int least = leaf < leaves && (inner == made || total[leaf] <= total[inner]) ? leaf++ : inner++;
            total[made] += total[least];
            parent[least] = made;
        }
    }
    int all_depths[2 * MOST_SYMBOLS];
    all_depths[root] = 0;
    for (int node = root - 1; node >= 0; node--) all_depths[node] = all_depths[parent[node]] + 1;
    memcpy(depth, all_depths, sizeof(int) * leaves);
    return all_depths[0]; /* the rarest lies deepest */
}

/* Set the length of each used symbol's code. Return the longest; 0 when one symbol only is used. */
static int lengths_of(const uint32_t *counts, int symbols, code *codes) {
    uint32_t sorted[MOST_SYMBOLS];
    int symbol_of[MOST_SYMBOLS], depth[MOST_SYMBOLS], used = 0;
    for (int symbol = 0; symbol < symbols; symbol++) {
        codes[symbol].length = 0;
        if (!counts[symbol]) continue;
        int place = used++;
        for (; place && sorted[place - 1] > counts[symbol]; place--) {
            sorted[place] = sorted[place - 1];
            symbol_of[place] = symbol_of[place - 1];
        }
        sorted[place] = counts[symbol];
        symbol_of[place] = symbol;
    }
    if (used < 2) return 0;
    int longest;
    while ((longest = depths_of(sorted, used, depth)) > MOST_BITS) /* flatter counts make a flatter tree, as in bzip2 */
        for (int i = 0; i < used; i++) sorted[i] = (sorted[i] + 1) / 2;
    for (int i = 0; i < used; i++) codes[symbol_of[i]].length = (uint16_t)depth[i];
    return longest;
}

/* The format's canonical codes: longest first, ascending, by symbol within a length. */
static void number_codes(code *codes, int symbols, int longest) {
    int num_of[MOST_BITS + 1] = {0}, next[MOST_BITS + 1], first = 0;
    for (int symbol = 0; symbol < symbols; symbol++) num_of[codes[symbol].length]++;
    for (int length = longest; length; length--) {
        next[length] = first;
        first = (first + num_of[length]) / 2;
    }
    for (int symbol = 0; symbol < symbols; symbol++)
        if (codes[symbol].length) codes[symbol].bits = (uint16_t)next[codes[symbol].length]++;
}

typedef struct {
    uint8_t *at;
    uint64_t bits; /* that are not at `at` yet, `held` of them */
    unsigned held;
} stream;

static inline void add(stream *to, code next) {
    to->bits |= (uint64_t)next.bits << to->held;
    to->held += next.length;
}

/* Write out whole bytes, so that less than 8 bits are held; up to 8 bytes from `at` on are written to. */
static inline void flush(stream *to) {
    memcpy(to->at, &to->bits, 8);
    to->at += to->held / 8;
    to->bits >>= to->held & ~7u;
    to->held %= 8;
}

/* Write codes from the last symbol to the first, as streams are read, and a bit that marks the end. Return where it ends. */
static uint8_t *write_stream(const uint8_t *symbols, int64_t left, const code *codes, uint8_t *out) {
    stream to = {out, 0, 0};
    while (left % 4) add(&to, codes[symbols[--left]]);
    for (flush(&to); left; flush(&to)) { /* at most 7 + 4 * MOST_BITS bits are held */
        left -= 4;
        for (int i = 3; i >= 0; i--) add(&to, codes[symbols[left + i]]);
    }
    add(&to, (code){1, 1});
    flush(&to);
    return to.at + (to.held > 0);
}

static uint8_t *write_number(uint8_t *out, uint64_t number, int bytes) {
    for (; bytes; bytes--, number >>= 8) *out++ = (uint8_t)number;
    return out;
}

/* Write the lengths of all codes but the last, which follows from them, as weights of four bits. */
static uint8_t *write_table(const code *codes, int symbols, int longest, uint8_t *out) {
    *out++ = (uint8_t)(127 + symbols - 1);
    for (int symbol = 0; symbol < symbols - 1; symbol++) {
        int weight = codes[symbol].length ? longest + 1 - codes[symbol].length : 0;
        if (symbol % 2)
            *out++ |= (uint8_t)weight;
        else
            *out = (uint8_t)(weight << 4);
    }
    return out + (symbols - 1) % 2;
}

/* Count each symbol. Return how many there may be, the largest and one; 0: too many. */
static int count_symbols(const uint8_t *symbols, int64_t count, uint32_t *counts) {
    uint8_t largest = 0;
    for (int64_t i = 0; i < count; i++) largest = symbols[i] > largest ? symbols[i] : largest;
    if (largest >= MOST_SYMBOLS) return 0;
    uint32_t tables[4][MOST_SYMBOLS] = {{0}}; /* in one table equal neighbours wait for each other */
    int64_t counted = 0;
    for (; counted + 4 <= count; counted += 4)
        for (int i = 0; i < 4; i++) tables[i][symbols[counted + i]]++;
    for (; counted < count; counted++) tables[0][symbols[counted]]++;
    for (int symbol = 0; symbol <= largest; symbol++)
        counts[symbol] = tables[0][symbol] + tables[1][symbol] + tables[2][symbol] + tables[3][symbol];
    return largest + 1;
}

/* Write a frame of these symbols to `out`, which has room for 1.5 * count + 128 bytes. Return its size; 0 when it has no such form
   (symbols above 128, one symbol only, too few or too many) or gains nothing: then it is the library's. */
int64_t prfaas_huffman_frame(const uint8_t *symbols, int64_t count, uint8_t *out) {
    static const uint8_t magic_and_flags[] = {0x28, 0xB5, 0x2F, 0xFD, 0xA0}; /* a single segment, its size in four bytes */
    if (count < LEAST_BYTES || count > MOST_BYTES) return 0;
    uint32_t counts[MOST_SYMBOLS];
    int used = count_symbols(symbols, count, counts);
    if (!used) return 0;
    code codes[MOST_SYMBOLS];
    int longest = lengths_of(counts, used, codes);
    if (!longest) return 0;
    number_codes(codes, used, longest);

    memcpy(out, magic_and_flags, sizeof magic_and_flags);
    uint8_t *block = write_number(out + sizeof magic_and_flags, (uint64_t)count, 4), *literals = block + 3, *table = literals + 5;
    uint8_t *sizes = write_table(codes, used, longest, table), *at = sizes + 2 * (STREAMS - 1);
    int64_t share = (count + STREAMS - 1) / STREAMS;
    for (int i = 0; i < STREAMS; i++) {
        int64_t first = i * share, left = count - first;
        uint8_t *end = write_stream(symbols + first, left < share ? left : share, codes, at);
        if (i < STREAMS - 1) write_number(sizes + 2 * i, (uint64_t)(end - at), 2);
        at = end;
    }
    int64_t size = at - table;
    *at++ = 0; /* sequences */
    if (at - literals >= count) return 0; /* a block may not be longer than what it stands for */
    write_number(literals, 2 | 3 << 2 | (uint64_t)count << 4 | (uint64_t)size << 22, 5); /* Huffman, four streams, sizes in 18 bits */
    write_number(block, 1 | 2 << 1 | (uint64_t)(at - literals) << 3, 3); /* the last block, compressed */
    return at - out;
}
