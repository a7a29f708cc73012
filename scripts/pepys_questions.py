"""Tables for `pepys_chat.py`: what people ask Mr. Pepys, and which of his sentences can answer it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """Questions on one subject.

    Args:
        questions: Wordings.
        says: Pattern that an answering sentence must contain.
        limit: How many sentences are taken.
        about_me: Whether the sentence must also say I, me, my, we, our or us.
    """

    questions: tuple[str, ...]
    says: str
    limit: int = 36
    about_me: bool = True


TOPICS = (
    Topic(
        (
            "What did you have for dinner?",
            "What did you eat today?",
            "Did you dine well?",
            "Tell me about a good dinner you had.",
            "What do you like to eat?",
            "What was on the table at dinner?",
        ),
        r"\b(dined|dinner|supped|eat)\b.*\b(beef|venison|pasty|lobsters?|oysters?|fowl|pullets?|mutton|salmon|neats?"
        r"|tongues?|lamb|pigeons?|chine|carp|fish|hare|turkey|goose|ham|bread|butter|cheese|pie|tarts?)\b",
        60,
    ),
    Topic(
        (
            "Where did you dine?",
            "With whom did you dine?",
            "Who came to dinner?",
            "Did you have company at dinner?",
            "Did you dine at home?",
            "How was dinner?",
        ),
        r"\b(dined with|came? to dinner|dined at|home to dinner|to dinner with|dined there)\b",
        60,
    ),
    Topic(
        (
            "How is your wife?",
            "Tell me about your wife.",
            "What did your wife do?",
            "Is your wife well?",
            "Do you and your wife agree?",
            "What does your wife say?",
            "What did you and your wife do today?",
        ),
        r"\bmy wife\b.*\b(well|ill|merry|pleased?|angry|vexed|fine|pretty|content|glad|troubled|home|abroad|dressed)\b",
        80,
    ),
    Topic(
        (
            "How is your work at the office?",
            "What did you do at the office?",
            "Are you busy at the office?",
            "Tell me about your office.",
            "Did you have much business today?",
            "How was work?",
            "Did you work hard today?",
        ),
        r"\b(at|to) (the|my) office\b.*\b(business|busy|late|writing|accounts|letters|sat|papers)\b",
        70,
    ),
    Topic(
        (
            "What do you think of the King?",
            "Have you seen the King?",
            "What is the King doing?",
            "Tell me about the King.",
            "What news of the King?",
            "Did you speak with the King?",
        ),
        r"\bI\b.*\bthe King\b(?!’s (house|Head|playhouse|Theatre))",
        60,
    ),
    Topic(
        (
            "Tell me about the plague.",
            "How bad is the plague?",
            "Are you afraid of the plague?",
            "What news of the plague?",
            "How many die of the plague?",
            "Is the sickness still in town?",
        ),
        r"\b(plague|the sickness|pest-?house)\b",
        60,
        about_me=False,
    ),
    Topic(
        (
            "Tell me about the great fire.",
            "What did you see of the fire?",
            "How far did the fire go?",
            "Was your house burned in the fire?",
            "What did the fire of London do?",
            "Were you afraid of the fire?",
        ),
        r"\b(the (late )?(dreadful )?fire (was|is|had|come|coming|did|being|of the City|burned)|in the fire"
        r"|burned? (down|all)|great fire|houses? (were |was )?burn(ed|t)|ruins|burning)\b",
        60,
        about_me=False,
    ),
    Topic(
        (
            "Did you go to church?",
            "How was the sermon?",
            "What did you think of the sermon?",
            "Who preached today?",
            "Do you go to church on Sunday?",
            "What did you do on the Lord's day?",
        ),
        r"\b(sermon|preached|preach)\b",
        60,
    ),
    Topic(
        (
            "Have you seen a good play?",
            "What play did you see?",
            "Did you go to the theatre?",
            "How was the play?",
            "Do you like plays?",
            "Tell me about the last play you saw.",
        ),
        r"\b(saw|see|seen|acted)\b.*\bplay\b",
        70,
    ),
    Topic(
        (
            "Do you like music?",
            "Did you sing today?",
            "What music did you make?",
            "Do you play an instrument?",
            "Tell me about your music.",
            "Do you play the lute?",
        ),
        r"\b(lute|theorbo|viall?|viol|flageolet|musique|music|songs?|sung|singing)\b",
        70,
    ),
    Topic(
        (
            "How much money do you have?",
            "What are you worth?",
            "Did you make up your accounts?",
            "Are you rich?",
            "How are your accounts?",
            "Tell me about your money.",
        ),
        r"\b(I am worth|myself worth|my accounts|I find (that )?I|in my purse|my money)\b.*(£|\baccounts\b|\bmoney\b)",
        60,
    ),
    Topic(
        (
            "What did it cost you?",
            "How much did you pay for it?",
            "Did you buy anything?",
            "What did you buy today?",
            "Did you spend any money?",
        ),
        r"\b(I|we)\b.*\b(bought|cost me|paid|gave)\b.*(\d+s\.|£\d|\bshillings?\b)",
        50,
    ),
    Topic(
        (
            "What did you wear?",
            "Do you have new clothes?",
            "Tell me about your new suit.",
            "Do you like fine clothes?",
            "Have you been to the tailor?",
            "Do you wear a periwig?",
        ),
        r"\b(suit|periwigg?|velvet|camlett?|cloak|tailor|clothes|waistcoat|beaver|lace|silk|hat)\b",
        60,
    ),
    Topic(
        (
            "What are you reading?",
            "Do you like books?",
            "Did you read anything today?",
            "Have you bought any books?",
            "Tell me about a book you read.",
        ),
        r"\b(reading|read|books?(eller)?)\b.*\b(book|books|reading|history|poems?|mightily|pleas\w+|excellent|good)\b",
        60,
    ),
    Topic(
        (
            "How is your health?",
            "Are you well?",
            "Are you in pain?",
            "Have you been ill?",
            "Did you take physic?",
            "How do you feel?",
        ),
        r"\b(in (some|great|much) pain|my pain|took physic|my cold|very ill|my health|my stone|sick|my old pain)\b",
        60,
    ),
    Topic(
        ("How are your eyes?", "Do your eyes trouble you?", "Can you see well?", "What is wrong with your eyes?"),
        r"\bmy eyes?\b.*\b(sore|bad|ill|trouble\w*|pain|read|weary|spare|hurt|candle\w*)\b",
        40,
    ),
    Topic(
        (
            "How is the weather?",
            "Was it a fine day?",
            "Did it rain today?",
            "Is it cold?",
            "What was the weather like?",
            "Was there a frost?",
        ),
        r"\b(rain(ed|ing)?|frost|snow(ed|ing)?|(very|mighty|bitter) cold|(hot|fine) day|(high|cold) wind|thunder\w*"
        r"|storm)\b",
        60,
        about_me=False,
    ),
    Topic(
        (
            "When did you go to bed?",
            "Did you sleep well?",
            "Did you stay up late?",
            "How did you sleep?",
            "Are you tired?",
            "What did you do before bed?",
        ),
        r"\b(slept|sleep|weary|sleepy|late)\b.*\bbed\b|\bbed\b.*\b(slept|sleep|weary|sleepy|late|o’clock)\b",
        60,
    ),
    Topic(
        (
            "When did you get up?",
            "Do you rise early?",
            "Did you get up early this morning?",
            "What did you do this morning?",
        ),
        r"^(Up|Rose|Lay) .*\b(betimes|early|o’clock|long in bed|long|late)\b",
        50,
        about_me=False,
    ),
    Topic(
        (
            "What did you do today?",
            "How was your day?",
            "What have you been doing?",
            "Tell me about your day.",
            "What did you do all day?",
        ),
        r"^(Up|Rose|At home|Lay|To the office|All the morning).*\b(I|my|we)\b",
        90,
        about_me=False,
    ),
    Topic(
        (
            "Did you drink any wine?",
            "What do you drink?",
            "Did you go to the tavern?",
            "Do you like wine?",
            "Where did you drink?",
        ),
        r"\b(drank|drink|drunk)\b.*\b(wine|sack|ale|beer|claret|tavern|morning draft|pint|bottles?)\b",
        50,
    ),
    Topic(
        ("Do you go to the coffee-house?", "What did you hear at the coffee-house?", "Do you drink coffee?"),
        r"\b[Cc]offee-?[Hh]ouse\b",
        36,
    ),
    Topic(
        (
            "How did you travel?",
            "Did you go by coach?",
            "Do you have a coach?",
            "Did you go by water?",
            "How did you come home?",
        ),
        r"\b(I|we|my)\b.*\b(by coach|my coach|by water|on foot|horses?)\b",
        50,
    ),
    Topic(
        (
            "How is your house?",
            "What work is being done in your house?",
            "Tell me about your house.",
            "Are the workmen still in your house?",
            "Have you new things for your house?",
        ),
        r"\b(my house|workmen|painters|joyners?|joiners?|plasterers|my closet|dining-?room|hangings)\b",
        50,
    ),
    Topic(
        (
            "How are your servants?",
            "Do you have a good maid?",
            "Tell me about your maids.",
            "Do you have servants?",
            "Tell me about your boy.",
        ),
        r"\b(our|my) (wife’s )?(maids?|boy|cook-?maid|servants?|new maid)\b",
        44,
    ),
    Topic(
        (
            "What news of the war?",
            "What news of the Dutch?",
            "Tell me about the fleet.",
            "How goes the war with the Dutch?",
            "Is there any news from sea?",
        ),
        r"\b(the Dutch|our fleet|the fleet|De Ruyter|Hollanders?)\b",
        60,
        about_me=False,
    ),
    Topic(
        (
            "What is the news?",
            "Have you heard any news?",
            "What do people talk of in town?",
            "What did you hear today?",
            "What news is there?",
        ),
        r"\b(I hear|we hear|news|all the talk|the town talk)\b.*\b(that|of|is)\b",
        60,
        about_me=False,
    ),
    Topic(
        (
            "Did you dance?",
            "Do you like dancing?",
            "Were you merry?",
            "Did you have a merry evening?",
            "Was there mirth?",
        ),
        r"\b(danced|dancing|dance|very merry|mighty merry|mirth|cards|laugh\w*)\b",
        56,
    ),
    Topic(
        ("How do you keep Christmas?", "What did you do at Christmas?", "Tell me about Christmas day."),
        r"\bChristmas[- ]([Dd]ay|[Tt]ime|[Ee]ve|dinner|holidays|pie)\b|\b(this|at|of) Christmas\b",
        30,
        about_me=False,
    ),
    Topic(
        (
            "Do you like science?",
            "Tell me about Gresham College.",
            "What did you see at Gresham College?",
            "Did you see any experiments?",
        ),
        r"\b(Gresham|experiments?|microscope|telescope|philosophy|anatom\w+|Virtuosi)\b",
        36,
        about_me=False,
    ),
    Topic(
        (
            "Are you happy?",
            "How do you feel today?",
            "Are you content with your life?",
            "What makes you glad?",
            "Do you thank God?",
        ),
        r"\b(I|my)\b.*\b(great content|pleasure|happy|glad|God be praised|bless God|thank God|praised be)\b",
        64,
    ),
    Topic(
        (
            "What troubles you?",
            "Why are you vexed?",
            "Are you angry?",
            "What are you afraid of?",
            "Were you troubled today?",
        ),
        r"\b(troubles? me|troubled|vexed|vexes me|vext|angry|afeard|I fear)\b",
        64,
    ),
    Topic(
        ("Have you a garden?", "Did you walk in the garden?", "Do you like to walk?", "Where did you walk?"),
        r"\b(walked?|walking)\b.*\b(garden|fields?|park|Park|leads|Spring Garden|Hyde)\b",
        50,
    ),
    Topic(
        ("Have you had your picture drawn?", "Do you like pictures?", "Tell me about your picture."),
        r"\b(picture|pictures|Hales|painter|draw(ing|n)?)\b",
        36,
    ),
    Topic(
        ("Have you made any vows?", "Do you keep your vows?", "What have you sworn not to do?"),
        r"\bmy (vows?|oaths?|late vows?)\b",
        30,
    ),
    Topic(
        (
            "How is your family?",
            "How is your father?",
            "How is your mother?",
            "How is your brother?",
            "Have you family?",
        ),
        r"\bmy (father|mother|brother|sister|brother’s)\b",
        60,
    ),
)

PEOPLE = {
    "Sir W. Batten": r"Sir W(illiam|\.) Batten",
    "Sir W. Penn": r"Sir W(illiam|\.) Penn",
    "my Lord Sandwich": r"my Lord Sandwich",
    "Mr. Creed": r"Creed",
    "Will Hewer": r"(W\.|Will) Hewer",
    "Sir W. Coventry": r"(Sir W\.|Mr\.) Coventry",
    "Sir J. Minnes": r"Sir J(ohn|\.) Minnes",
    "Sir G. Carteret": r"Sir G(eorge|\.) Carteret",
    "Mrs. Pierce": r"Mrs\. Pierce",
    "Mrs. Knipp": r"Knipp",
    "Mercer": r"Mercer",
    "your uncle Wight": r"uncle Wight",
    "your father": r"my father(?!’s)",
    "your brother Tom": r"my brother Tom|brother Tom",
    "your brother John": r"my brother John|brother John",
    "your sister Pall": r"(my sister|Pall\b)",
    "Mr. Povy": r"Povy",
    "Captain Cocke": r"Captain Cocke",
    "Sir W. Warren": r"Sir W(illiam|\.) Warren",
    "the Duke of York": r"Duke of York(?!’s (house|play))",
    "the Duke of Albemarle": r"Duke of Albemarle",
    "the Queen": r"the Queen\b",
    "Mr. Evelyn": r"Evelyn",
    "Mr. Moore": r"Mr\. Moore",
    "my Lord Brouncker": r"(my Lord|Lord) Brouncker",
    "the Lord Chancellor": r"Lord Chancellor",
    "Mr. Gawden": r"Gawden",
    "the Parliament": r"\bParliament\b",
    "Sir R. Ford": r"Sir R(ichard|\.) Ford",
    "Sir H. Cholmly": r"Cholml",
    "Captain Ferrers": r"Ferrers",
    "my Lady Sandwich": r"my Lady Sandwich",
    "your aunt Wight": r"aunt Wight",
    "your cousin Roger": r"[Cc]ousin Roger",
    "Balty": r"Balty",
}
ASK_PERSON = (
    "What can you tell me about {}?",
    "Do you know {}?",
    "Have you seen {} lately?",
    "What do you think of {}?",
    "Tell me about {}.",
    "What news of {}?",
    "Did you meet {}?",
    "What do you say of {}?",
)

PLACES = {
    "Deptford": r"Deptford",
    "Woolwich": r"Woolwich",
    "Greenwich": r"Greenwich",
    "Whitehall": r"Whitehall",
    "Westminster Hall": r"Westminster Hall",
    "the Exchange": r"(’Change|Exchange)\b",
    "the Tower": r"the Tower\b",
    "the Temple": r"the Temple\b",
    "Hinchingbroke": r"Hinchingbroke",
    "Brampton": r"Brampton",
    "Chatham": r"Chatham",
    "Portsmouth": r"Portsmouth",
    "Tangier": r"Tangier",
    "Hyde Park": r"(Hyde|Hide) ?Parke?",
    "St. James's Park": r"St\. James’s Park",
    "St. Paul's": r"(St\. )?Paul’s",
    "Cambridge": r"Cambridge",
    "the Thames": r"\b(the River|the river|the Thames|a boat|by water)\b",
}
ASK_PLACE = (
    "Have you been to {} lately?",
    "What did you do at {}?",
    "Tell me about {}.",
    "Do you often go to {}?",
    "What did you see at {}?",
    "What news from {}?",
)
