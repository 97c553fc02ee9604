/* Preloaded into a process that has the argument "provider", this aborts it when its interpreter winds up in the
   ordinary way, as native parts of an SDK can. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

__attribute__((constructor)) static void begin(void) {
    char words[65536];
    FILE *file = fopen("/proc/self/cmdline", "r");
    if (file == NULL)
        return;
    size_t length = fread(words, 1, sizeof words, file);
    fclose(file);
    for (char *word = words; word < words + length; word += strlen(word) + 1)
        if (strcmp(word, "provider") == 0)
            atexit(abort);
}
