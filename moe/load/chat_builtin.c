/* Chats: templates by name, for files whose own is missing or wrong.  Each writes the layout that
 * the models of that name were trained with; names are llama.cpp's where it has them.
 *
 * Owns a table. */
#include <string.h>

#include "moe/load/chat.h"

#define EACH "{% for m in messages %}"
#define END "{% endfor %}"
#define PROMPT(text) "{% if add_generation_prompt %}" text "{% endif %}"
/* For models without a system role: its text goes ahead of the first message; `s` is the text with
 * its blank lines, `rest` the other messages. */
#define SYSTEM_FIRST \
    "{% if messages and messages[0].role == 'system' %}" \
    "{% set s = messages[0].content|trim ~ '\\n\\n' %}{% set rest = messages[1:] %}" \
    "{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"

static const struct builtin {
    const char *name, *text;
} table[] = {
    {"chatglm4",
     "[gMASK]<sop>" EACH "{{ '<|' ~ m.role ~ '|>\\n' ~ m.content }}" END
     PROMPT("{{ '<|assistant|>\\n' }}")},
    {"chatml",
     EACH "{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}" END
     PROMPT("{{ '<|im_start|>assistant\\n' }}")},
    {"command-r",
     "{% set names = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} %}" EACH
     "{{ '<|START_OF_TURN_TOKEN|><|' ~ names[m.role] ~ '_TOKEN|>' ~ m.content|trim ~ "
     "'<|END_OF_TURN_TOKEN|>' }}" END PROMPT("{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}")},
    {"deepseek2",
     EACH "{% if m.role == 'system' %}{{ m.content ~ '\\n\\n' }}"
     "{% elif m.role == 'user' %}{{ 'User: ' ~ m.content ~ '\\n\\n' }}"
     "{% else %}{{ 'Assistant: ' ~ m.content ~ '<\xef\xbd\x9c\x65nd\xe2\x96\x81of\xe2\x96\x81"
     "sentence\xef\xbd\x9c>' }}{% endif %}" END PROMPT("{{ 'Assistant:' }}")},
    {"deepseek3",
     EACH "{% if m.role == 'system' %}{{ m.content ~ '\\n\\n' }}"
     "{% elif m.role == 'user' %}{{ '<\xef\xbd\x9cUser\xef\xbd\x9c>' ~ m.content }}"
     "{% else %}{{ '<\xef\xbd\x9c\x41ssistant\xef\xbd\x9c>' ~ m.content ~ '<\xef\xbd\x9c\x65nd"
     "\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>' }}{% endif %}" END
     PROMPT("{{ '<\xef\xbd\x9c\x41ssistant\xef\xbd\x9c>' }}")},
    {"gemma",
     SYSTEM_FIRST "{% for m in rest %}"
     "{{ '<start_of_turn>' ~ ('model' if m.role == 'assistant' else 'user') ~ '\\n' }}"
     "{% if loop.first %}{{ s }}{% endif %}{{ m.content|trim ~ '<end_of_turn>\\n' }}" END
     PROMPT("{{ '<start_of_turn>model\\n' }}")},
    {"gpt-oss",
     EACH "{{ '<|start|>' ~ m.role }}{% if m.role == 'assistant' %}{{ '<|channel|>final' }}"
     "{% endif %}{{ '<|message|>' ~ m.content ~ '<|end|>' }}" END
     PROMPT("{{ '<|start|>assistant' }}")},
    {"granite",
     EACH "{{ '<|start_of_role|>' ~ m.role ~ '<|end_of_role|>' ~ m.content ~ '<|end_of_text|>\\n' }}"
     END PROMPT("{{ '<|start_of_role|>assistant<|end_of_role|>' }}")},
    {"kimi-k2",
     EACH "{{ '<|im_' ~ m.role ~ '|>' ~ m.role ~ '<|im_middle|>' ~ m.content ~ '<|im_end|>' }}" END
     PROMPT("{{ '<|im_assistant|>assistant<|im_middle|>' }}")},
    {"llama2",
     "{% if messages and messages[0].role == 'system' %}"
     "{% set s = '<<SYS>>\\n' ~ messages[0].content|trim ~ '\\n<</SYS>>\\n\\n' %}"
     "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
     "{% for m in rest %}{% if m.role == 'user' %}"
     "{{ bos_token ~ '[INST] ' ~ (s if loop.first else '') ~ m.content|trim ~ ' [/INST]' }}"
     "{% else %}{{ ' ' ~ m.content|trim ~ ' ' ~ eos_token }}{% endif %}" END},
    {"llama3",
     "{{ bos_token }}" EACH "{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' ~ "
     "m.content|trim ~ '<|eot_id|>' }}" END
     PROMPT("{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}")},
    {"llama4",
     "{{ bos_token }}" EACH "{{ '<|header_start|>' ~ m.role ~ '<|header_end|>\\n\\n' ~ "
     "m.content|trim ~ '<|eot|>' }}" END
     PROMPT("{{ '<|header_start|>assistant<|header_end|>\\n\\n' }}")},
    {"mistral-v1",
     SYSTEM_FIRST "{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}"
     "{{ ' [INST] ' ~ (s if loop.first else '') ~ m.content|trim ~ ' [/INST]' }}"
     "{% else %}{{ ' ' ~ m.content|trim ~ eos_token }}{% endif %}" END},
    {"mistral-v3-tekken",
     SYSTEM_FIRST "{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}"
     "{{ '[INST]' ~ (s if loop.first else '') ~ m.content|trim ~ '[/INST]' }}"
     "{% else %}{{ m.content|trim ~ eos_token }}{% endif %}" END},
    {"mistral-v7-tekken",
     "{{ bos_token }}" EACH "{% if m.role == 'system' %}"
     "{{ '[SYSTEM_PROMPT]' ~ m.content ~ '[/SYSTEM_PROMPT]' }}{% elif m.role == 'user' %}"
     "{{ '[INST]' ~ m.content ~ '[/INST]' }}{% else %}{{ m.content ~ eos_token }}{% endif %}" END},
    {"phi3",
     EACH "{{ '<|' ~ m.role ~ '|>\\n' ~ m.content ~ '<|end|>\\n' }}" END
     PROMPT("{{ '<|assistant|>\\n' }}")},
    {"phi4",
     EACH "{{ '<|im_start|>' ~ m.role ~ '<|im_sep|>' ~ m.content ~ '<|im_end|>' }}" END
     PROMPT("{{ '<|im_start|>assistant<|im_sep|>' }}")},
    {"plain",
     EACH "{% if m.role == 'system' %}{{ m.content|trim ~ '\\n\\n' }}"
     "{% else %}{{ m.role|capitalize ~ ': ' ~ m.content|trim ~ '\\n' }}{% endif %}" END
     PROMPT("{{ 'Assistant:' }}")},
    {"vicuna",
     EACH "{% if m.role == 'system' %}{{ m.content ~ '\\n\\n' }}"
     "{% elif m.role == 'user' %}{{ 'USER: ' ~ m.content ~ '\\n' }}"
     "{% else %}{{ 'ASSISTANT: ' ~ m.content ~ eos_token ~ '\\n' }}{% endif %}" END
     PROMPT("{{ 'ASSISTANT:' }}")},
    {"zephyr",
     EACH "{{ '<|' ~ m.role ~ '|>\\n' ~ m.content ~ eos_token ~ '\\n' }}" END
     PROMPT("{{ '<|assistant|>\\n' }}")},
};
enum { N_BUILTIN = sizeof table / sizeof table[0] };

const char *chat_builtin_at(int i)
{
    return i >= 0 && i < N_BUILTIN ? table[i].name : NULL;
}

const char *chat_builtin(const char *name)
{
    for (int i = 0; i < N_BUILTIN; i++)
        if (!strcmp(table[i].name, name)) return table[i].text;
    return NULL;
}
