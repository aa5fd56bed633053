"""Words for names, values and questions. Those of calls are one token after a blank and without one."""


def choices(text: str) -> tuple[str, ...]:
    """The texts between the bars."""
    return tuple(" ".join(part.split()) for part in text.split("|"))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CITIES = _words(
    """Paris London Berlin Rome Madrid Tokyo Boston
    Chicago Dallas Denver Seattle Miami Austin Toronto Sydney Delhi Mumbai Singapore Seoul"""
)
PEOPLE = _words(
    """Anna Ben Carl Emma Frank Grace Henry Ivan Julia Kate Leo Maria Oscar Paul Sam Tom Eva Max Lucy Jack
    Alice Bob David Peter Laura Mark Sarah John Mary James Linda Robert Susan Daniel Helen"""
)
FOODS = _words("""apple bread milk rice coffee tea water juice pizza cake egg fish banana orange salt""")
COLORS = _words("""red green blue yellow black white orange gray""")
DAYS = _words("""Monday Tuesday Wednesday Thursday Friday Saturday Sunday""")
MONTHS = _words("""January February March April May June July August September October November December""")
LANGUAGES = _words("""English French German Spanish Italian Russian Chinese Japanese Dutch Polish""")
VERBS = _words(
    """get find search list add remove create send set book check convert count delete fetch load lookup make
    move open order play print read save show start stop store update write track share schedule compute
    query buy sell lock rename copy close call"""
)
NOUNS = _words(
    """weather price stock time date file user order ticket table room song list note message email event
    task timer alarm light color image map route city score game book movie video photo report status
    group team product item invoice account balance rate currency distance text document record page row
    key value name number code data log test job run model recipe train car phone address contact calendar
    temperature window volume playlist"""
)

# What people ask a model about that this one knows nothing of.
SUBJECTS = choices(
    """the weather | the moon | the sun | dogs | cats | history | music | football | physics | chemistry |
    love | the sea | the stock market | cooking | a good recipe for pasta | the capital of France | the
    president | a poem | a story | a joke | the meaning of life | quantum mechanics | the roman empire |
    the second world war | shakespeare | a song | rain | snow | trees | birds | the ocean | space | the
    universe | mars | black holes | gravity | einstein | newton | mozart | beethoven | paris | london |
    new york | china | germany | france | italy | spain | america | africa | japan | russia | the news |
    the election | politics | religion | god | philosophy | art | painting | picasso | a haiku | an
    essay | a letter to my boss | an email | my homework | biology | evolution | dinosaurs | the human
    body | the heart | medicine | a headache | my health | a diet | sports | tennis | basketball | chess
    | video games | movies | a good film | a good book | novels | javascript | rust | java | html | css
    | sql | a web page | a website | linux | windows | docker | git | a sorting algorithm | a binary
    tree | machine learning | neural networks | transformers | deep learning | climate change | the
    economy | money | bitcoin | a loan | taxes | my car | a bicycle | trains | airplanes | travel | a
    trip to rome | hotels | a restaurant | pizza | coffee | tea | wine | beer | bread | cheese |
    chocolate | apples | flowers | gardening | my garden | my house | my family | my friend | children |
    school | university | teachers | english grammar | french | german | spanish | latin | a translation
    | poetry | the internet | phones | computers | robots | the future | the past | time travel | dreams
    | sleep | happiness | friendship | war | peace | the law | a contract | democracy | king arthur |
    queen victoria | napoleon | caesar | cleopatra | the pyramids | mountains | rivers | volcanoes |
    earthquakes | the sky | light | sound | electricity | magnets | atoms | molecules | water | fire |
    gold | iron | plastic | the color blue | red | numbers | geometry | calculus | algebra | statistics
    | probability | prime numbers | pi | the square root of two | infinity"""
)
PLACES = _words(
    """france germany italy spain england china japan india brazil canada mexico egypt russia sweden norway
    poland greece turkey australia argentina chile peru kenya ireland portugal austria hungary denmark
    finland iceland"""
)
THINGS = _words(
    """poem story joke song letter essay recipe haiku speech novel sentence riddle list summary plan program
    function script paragraph review report email message book play rap limerick tweet blog article
    question"""
)
ADJECTIVES = _words(
    """short long funny sad nice good beautiful simple new old great small big little interesting romantic
    scary happy clever quick fast slow strange serious boring famous easy hard perfect"""
)

# Common words, so that the model has a row of its own for most of what people type.
COMMON = _words(
    """the of and to in is that it was for on are as with his they at be this from have or by one had not but
    what all were when we there can an your which their said if do will each about how up out them then
    she many some so these would other into has more her two like him see time could no make than first
    been its who now people my made over did down only way find use may water long little very after words
    called just where most know get through back much before go good new write our used me man too any day
    same right look think also around another came come work three word must because does part even place
    well such here take why things help put years different away again off went old number great tell men
    say small every found still between name should home big give air line set own under read last never
    us left end along while might next sound below saw something thought both few those always looked show
    large often together asked house world going want school important until form food keep children feet
    land side without boy once animals life enough took sometimes four head above kind began almost live
    page got earth need far hand high year mother light parts country father let night following picture
    being study second eyes soon times story boys since white days ever paper hard near sentence better
    best across during today others however sure means knew try told young miles sun ways thing whole hear
    example heard several change answer room sea against top turned learn point city play toward five
    using himself usually money seen car morning body upon family later turn move face door cut done group
    true half sentences red fish plants living black eat short run states book gave order open ground cold
    really table remember tree course front space inside ago sad early learned brought close nothing
    though idea lived became add become grow draw yet less wind behind cannot letter among able dog shown
    mean english rest perhaps certain six feel fire ready green built special ran full town complete oh
    person hot anything hold state list stood hundred ten fast felt kept notice strong voice probably area
    horse matter stand box start class piece surface river common stop am talk whether fine round dark
    past ball girl road blue instead either held already warm gone finally summer understand moon animal
    mind outside power problem longer winter deep heavy carefully follow beautiful everyone leave
    everything game system bring watch shell dry within floor ice ship themselves begin fact third quite
    carry distance although possible heart real simple snow rain suddenly leaves easy lay size wild
    weather miss pattern sky walked main someone center field stay boat question wide least tiny hour
    happened foot care low else gold build glass rock tall alone bottom check reading fall poor map friend
    language job music buy window mark heat grew listen ask single clear energy week explain lost spring
    travel wrote farm circle whose correct bed measure straight base mountain caught hair bird wood color
    war fly yourself seem thus square moment teacher happy bright sent present plan rather length speed
    machine information except figure cost science view stories law wish kill sing guess love believe hate
    please thank sorry yes maybe dear computer phone internet email website video photo movie film song
    artist actor player team football doctor hospital medicine health disease virus vaccine president
    minister government election vote party police court judge market price company business manager
    customer product bank credit tax salary income office meeting project report document file folder code
    program software hardware network server database password account user error bug test debug compile
    function variable method object array string integer loop python java script browser search engine
    google apple microsoft amazon facebook twitter wikipedia chatgpt openai model intelligence robot human
    brain physics chemistry biology math algebra equation theory experiment research scientist university
    student lesson exam homework essay poem novel author character chapter title history ancient king
    queen empire revolution battle soldier peace religion church god bible prayer philosophy meaning truth
    beauty dream sleep wake breakfast lunch dinner recipe cook kitchen sugar salt butter cheese bread meat
    chicken beef rice pasta soup salad fruit banana orange lemon tomato potato coffee tea beer wine bottle
    cup plate knife fork spoon hotel flight airport train station bus ticket trip vacation beach island
    ocean lake forest desert planet star galaxy universe rocket satellite electricity battery bridge tower
    castle museum theater concert dance sport tennis basketball swim bike climb autumn season temperature
    degree kilometer mile meter inch pound kilogram minute month january february march april june july
    august september october november december monday tuesday wednesday thursday friday saturday sunday
    multiply divide root percent double triple twice quarter dozen million billion thousand zero seven
    eight nine eleven twelve twenty thirty forty fifty sixty seventy eighty ninety translate french german
    spanish italian russian chinese japanese latin greek favourite favorite colour brother sister husband
    wife baby neighbor boss feeling angry tired hungry lonely afraid worried excited bored advice tip
    secret joke funny laugh cry smile kiss hug birthday christmas gift wedding marriage death born age
    weight lose gain exercise diet fat sick pain headache fever tooth eye ear nose mouth leg blood bone
    skin"""
)
